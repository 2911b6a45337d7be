"""The public names of the library, and where each lives; type checkers read this file, too."""

from mirror.bundle.archive import (
    Archive as Archive,
)
from mirror.bundle.archive import (
    Entry as Entry,
)
from mirror.bundle.compress import (
    Compressed as Compressed,
)
from mirror.bundle.delta import (
    Carriage as Carriage,
)
from mirror.bundle.delta import (
    Omissions as Omissions,
)
from mirror.bundle.files import (
    Readable as Readable,
)
from mirror.bundle.members import (
    Member as Member,
)
from mirror.bundle.opening import (
    OpenArchive as OpenArchive,
)
from mirror.bundle.reader import (
    BundleReader as BundleReader,
)
from mirror.bundle.seal import (
    Seal as Seal,
)
from mirror.bundle.seal import (
    SealedFile as SealedFile,
)
from mirror.bundle.verify import (
    BundleReport as BundleReport,
)
from mirror.bundle.writer import (
    Packing as Packing,
)
from mirror.errors import (
    IncompleteError as IncompleteError,
)
from mirror.errors import (
    MirrorError as MirrorError,
)
from mirror.errors import (
    SourceContentError as SourceContentError,
)
from mirror.events import (
    BlobDone as BlobDone,
)
from mirror.events import (
    BytesMoved as BytesMoved,
)
from mirror.events import (
    EndpointDown as EndpointDown,
)
from mirror.events import (
    EndpointUp as EndpointUp,
)
from mirror.events import (
    Event as Event,
)
from mirror.events import (
    ManifestDone as ManifestDone,
)
from mirror.events import (
    OnEvent as OnEvent,
)
from mirror.events import (
    PhaseAdvanced as PhaseAdvanced,
)
from mirror.events import (
    PhaseStarted as PhaseStarted,
)
from mirror.events import (
    Retrying as Retrying,
)
from mirror.events import (
    TagDone as TagDone,
)
from mirror.events import (
    TransferStarted as TransferStarted,
)
from mirror.events import (
    Warned as Warned,
)
from mirror.events import (
    serialised as serialised,
)
from mirror.events import (
    side_by_side as side_by_side,
)
from mirror.job import (
    Job as Job,
)
from mirror.job import (
    start as start,
)
from mirror.modes import (
    outcomes as outcomes,
)
from mirror.modes.addressing import (
    Route as Route,
)
from mirror.modes.addressing import (
    routes_for as routes_for,
)
from mirror.modes.check import (
    CheckReport as CheckReport,
)
from mirror.modes.check import (
    CheckTarget as CheckTarget,
)
from mirror.modes.check import (
    ItemResult as ItemResult,
)
from mirror.modes.check import (
    ItemState as ItemState,
)
from mirror.modes.check import (
    RegistryResult as RegistryResult,
)
from mirror.modes.check import (
    check_images as check_images,
)
from mirror.modes.check import (
    impatient as impatient,
)
from mirror.modes.check import (
    targets_for as targets_for,
)
from mirror.modes.client import (
    ModeClient as ModeClient,
)
from mirror.modes.client import (
    connect as connect,
)
from mirror.modes.constants import (
    ConditionType as ConditionType,
)
from mirror.modes.constants import (
    User as User,
)
from mirror.modes.endpoints import (
    Endpoint as Endpoint,
)
from mirror.modes.failover import (
    HealthMemory as HealthMemory,
)
from mirror.modes.outcomes import (
    ClusterFacts as ClusterFacts,
)
from mirror.modes.outcomes import (
    ContainerdConfig as ContainerdConfig,
)
from mirror.modes.outcomes import (
    NodeFacts as NodeFacts,
)
from mirror.modes.outcomes import (
    StepOutcome as StepOutcome,
)
from mirror.modes.plan import (
    PlannedRoute as PlannedRoute,
)
from mirror.modes.plan import (
    Routing as Routing,
)
from mirror.modes.plan import (
    Step as Step,
)
from mirror.modes.plan import (
    SwitchPlan as SwitchPlan,
)
from mirror.modes.plan import (
    plan_switch as plan_switch,
)
from mirror.modes.preconditions import (
    Cause as Cause,
)
from mirror.modes.preconditions import (
    Doubt as Doubt,
)
from mirror.modes.preconditions import (
    PlanWarning as PlanWarning,
)
from mirror.modes.preconditions import (
    Refusal as Refusal,
)
from mirror.modes.preconditions import (
    Risk as Risk,
)
from mirror.modes.required import (
    RequiredImage as RequiredImage,
)
from mirror.modes.required import (
    RequiredSet as RequiredSet,
)
from mirror.modes.required import (
    required_images as required_images,
)
from mirror.modes.routes import (
    Backend as Backend,
)
from mirror.modes.routes import (
    Mode as Mode,
)
from mirror.modes.routes import (
    ModeKind as ModeKind,
)
from mirror.modes.routes import (
    ModeRow as ModeRow,
)
from mirror.modes.routes import (
    Plane as Plane,
)
from mirror.modes.routes import (
    PlaneRow as PlaneRow,
)
from mirror.modes.routes import (
    Role as Role,
)
from mirror.modes.routes import (
    StoreContent as StoreContent,
)
from mirror.modes.routes import (
    Verdict as Verdict,
)
from mirror.modes.settings import (
    Account as Account,
)
from mirror.modes.settings import (
    CheckMode as CheckMode,
)
from mirror.modes.settings import (
    ClusterAccess as ClusterAccess,
)
from mirror.modes.settings import (
    ProxySection as ProxySection,
)
from mirror.modes.settings import (
    RegistrySettings as RegistrySettings,
)
from mirror.modes.settings import (
    Upstream as Upstream,
)
from mirror.modes.settings import (
    UpstreamSection as UpstreamSection,
)
from mirror.modes.state import (
    Condition as Condition,
)
from mirror.modes.state import (
    Reason as Reason,
)
from mirror.modes.state import (
    RegistryState as RegistryState,
)
from mirror.modes.state import (
    inputs_hash as inputs_hash,
)
from mirror.nodeconfig.cluster import (
    Node as Node,
)
from mirror.nodeconfig.cluster import (
    NodePaths as NodePaths,
)
from mirror.nodeconfig.cluster import (
    Ports as Ports,
)
from mirror.nodeconfig.cluster import (
    load_access as load_access,
)
from mirror.nodeconfig.cluster import (
    load_facts as load_facts,
)
from mirror.nodeconfig.cluster import (
    load_nodes as load_nodes,
)
from mirror.nodeconfig.hosts import (
    Containerd as Containerd,
)
from mirror.nodeconfig.pki import (
    Authorities as Authorities,
)
from mirror.nodeconfig.pki import (
    KeyPair as KeyPair,
)
from mirror.nodeconfig.pods import (
    Images as Images,
)
from mirror.nodeconfig.proxies import (
    Nginx as Nginx,
)
from mirror.nodeconfig.render import (
    Rendered as Rendered,
)
from mirror.nodeconfig.render import (
    RenderOptions as RenderOptions,
)
from mirror.nodeconfig.render import (
    access_of as access_of,
)
from mirror.nodeconfig.render import (
    render as render,
)
from mirror.nodeconfig.render import (
    write_cluster as write_cluster,
)
from mirror.nodeconfig.service_secrets import (
    HashedAccount as HashedAccount,
)
from mirror.nodeconfig.service_secrets import (
    Leaves as Leaves,
)
from mirror.nodeconfig.service_secrets import (
    ServiceSecrets as ServiceSecrets,
)
from mirror.nodeconfig.service_secrets import (
    prepare_secrets as prepare_secrets,
)
from mirror.nodeconfig.service_secrets import (
    read_secrets as read_secrets,
)
from mirror.nodeconfig.service_secrets import (
    write_secrets as write_secrets,
)
from mirror.nodeconfig.services import (
    Distribution as Distribution,
)
from mirror.nodeconfig.tree import (
    RenderedFile as RenderedFile,
)
from mirror.nodeconfig.tree import (
    TreeChanges as TreeChanges,
)
from mirror.oci.digest import (
    Digest as Digest,
)
from mirror.oci.manifest import (
    Child as Child,
)
from mirror.oci.manifest import (
    Descriptor as Descriptor,
)
from mirror.oci.manifest import (
    Manifest as Manifest,
)
from mirror.oci.manifest import (
    Platform as Platform,
)
from mirror.oci.reference import (
    Reference as Reference,
)
from mirror.oci.reference import (
    Repository as Repository,
)
from mirror.operations.diff import (
    DiffReport as DiffReport,
)
from mirror.operations.diff import (
    diff as diff,
)
from mirror.operations.history import (
    Generation as Generation,
)
from mirror.operations.history import (
    HistoryReport as HistoryReport,
)
from mirror.operations.history import (
    history as history,
)
from mirror.operations.inventory import (
    RegistryInventory as RegistryInventory,
)
from mirror.operations.inventory import (
    registry_inventory as registry_inventory,
)
from mirror.operations.merge import (
    MergeReport as MergeReport,
)
from mirror.operations.merge import (
    merge as merge,
)
from mirror.operations.prune import (
    PruneReport as PruneReport,
)
from mirror.operations.prune import (
    prune as prune,
)
from mirror.operations.pull import (
    PlannedReference as PlannedReference,
)
from mirror.operations.pull import (
    PullPlan as PullPlan,
)
from mirror.operations.pull import (
    PullReport as PullReport,
)
from mirror.operations.pull import (
    plan_pull as plan_pull,
)
from mirror.operations.pull import (
    pull as pull,
)
from mirror.operations.push import (
    plan_push as plan_push,
)
from mirror.operations.push import (
    push as push,
)
from mirror.operations.push import (
    push_to_all as push_to_all,
)
from mirror.operations.push_reports import (
    MemberReport as MemberReport,
)
from mirror.operations.push_reports import (
    PushPlan as PushPlan,
)
from mirror.operations.push_reports import (
    PushReport as PushReport,
)
from mirror.operations.push_reports import (
    QuorumReport as QuorumReport,
)
from mirror.operations.results import (
    Outcome as Outcome,
)
from mirror.operations.results import (
    ReplicaResult as ReplicaResult,
)
from mirror.operations.rollback import (
    RollbackReport as RollbackReport,
)
from mirror.operations.rollback import (
    TagTurn as TagTurn,
)
from mirror.operations.rollback import (
    rollback as rollback,
)
from mirror.operations.status import (
    Counts as Counts,
)
from mirror.operations.status import (
    ReplicaStatus as ReplicaStatus,
)
from mirror.operations.status import (
    StatusReport as StatusReport,
)
from mirror.operations.status import (
    status as status,
)
from mirror.operations.sync import (
    SyncReport as SyncReport,
)
from mirror.operations.sync import (
    sync_replicas as sync_replicas,
)
from mirror.operations.trees import (
    replica_trees as replica_trees,
)
from mirror.operations.verify import (
    RegistryReport as RegistryReport,
)
from mirror.operations.verify import (
    verify as verify,
)
from mirror.operations.verify import (
    verify_registry as verify_registry,
)
from mirror.registry.auth import (
    Credentials as Credentials,
)
from mirror.registry.client import (
    RegistryClient as RegistryClient,
)
from mirror.registry.credentials import (
    find_credentials as find_credentials,
)
from mirror.registry.interfaces import (
    RegistryReader as RegistryReader,
)
from mirror.registry.interfaces import (
    RegistryWriter as RegistryWriter,
)
from mirror.registry.options import (
    ConnectionOptions as ConnectionOptions,
)
from mirror.registry.retry import (
    RetryPolicy as RetryPolicy,
)
from mirror.registry.sessions import (
    OpenUpload as OpenUpload,
)
from mirror.registry.upload_journal import (
    KeptUpload as KeptUpload,
)
from mirror.registry.upload_journal import (
    UploadJournal as UploadJournal,
)
from mirror.release.constraints import (
    Constraint as Constraint,
)
from mirror.release.constraints import (
    Term as Term,
)
from mirror.release.images import (
    WantedImage as WantedImage,
)
from mirror.release.plugin_dependencies import (
    Edge as Edge,
)
from mirror.release.plugins import (
    PluginChoice as PluginChoice,
)
from mirror.release.select import (
    SelectedContent as SelectedContent,
)
from mirror.release.selection import (
    ExactTag as ExactTag,
)
from mirror.release.selection import (
    Filter as Filter,
)
from mirror.release.selection import (
    ItemFilter as ItemFilter,
)
from mirror.release.selection import (
    PlatformSelection as PlatformSelection,
)
from mirror.release.selection import (
    Selection as Selection,
)
from mirror.release.source import (
    ReleaseSource as ReleaseSource,
)
from mirror.release.source import (
    SourceTree as SourceTree,
)
from mirror.run import (
    Cancellation as Cancellation,
)
from mirror.run import (
    Run as Run,
)
from mirror.sync.artifact import (
    Artifact as Artifact,
)
from mirror.sync.content import (
    BlobContent as BlobContent,
)
from mirror.sync.content import (
    Source as Source,
)
from mirror.sync.content import (
    Target as Target,
)
from mirror.sync.difference import (
    Difference as Difference,
)
from mirror.sync.difference import (
    TagDifference as TagDifference,
)
from mirror.sync.findings import (
    Finding as Finding,
)
from mirror.sync.inventory import (
    Gap as Gap,
)
from mirror.sync.inventory import (
    Inventory as Inventory,
)
from mirror.sync.memory import (
    MemoryStore as MemoryStore,
)
from mirror.sync.nodes import (
    ManifestNode as ManifestNode,
)
from mirror.sync.nodes import (
    RepositoryContent as RepositoryContent,
)
from mirror.sync.per_item_errors import (
    PerItemErrors as PerItemErrors,
)
from mirror.sync.plan import (
    CopyBlob as CopyBlob,
)
from mirror.sync.plan import (
    Plan as Plan,
)
from mirror.sync.plan import (
    PutManifest as PutManifest,
)
from mirror.sync.plan import (
    PutTag as PutTag,
)
from mirror.sync.plan import (
    make_plan as make_plan,
)
from mirror.sync.publication_state import (
    Published as Published,
)
from mirror.sync.registry import (
    RegistrySource as RegistrySource,
)
from mirror.sync.registry import (
    RegistryTarget as RegistryTarget,
)
from mirror.sync.removal import (
    DropManifest as DropManifest,
)
from mirror.sync.removal import (
    DropTag as DropTag,
)
from mirror.sync.removal import (
    Removal as Removal,
)
from mirror.sync.statement import (
    Statement as Statement,
)
from mirror.sync.storage import (
    Storage as Storage,
)
from mirror.sync.survey import (
    Failure as Failure,
)
from mirror.sync.tags import (
    TagChanges as TagChanges,
)
from mirror.sync.transfer import (
    Independence as Independence,
)
from mirror.sync.transfer import (
    Interim as Interim,
)
from mirror.sync.transfer import (
    TransferReport as TransferReport,
)
from mirror.sync.transfer import (
    transfer as transfer,
)
from mirror.sync.tree import (
    RegistryTree as RegistryTree,
)

__all__: list[str]
