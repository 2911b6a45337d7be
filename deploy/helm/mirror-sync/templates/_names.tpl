{{- define "mirror-sync.selector" -}}
app.kubernetes.io/name: mirror-sync
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mirror-sync.labels" -}}
{{ include "mirror-sync.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
