// The first program of the executable `mirror`: it finds the interpreter and becomes it.
//
// The file is this program, a compressed tar with the interpreter and all modules behind it, and a
// trailer that names that tar: its size and its SHA-256. The tar is unpacked once, into a folder
// named by the digest; from then on a start costs a few milliseconds. Without a trailer the
// interpreter lies in ../lib/mirror beside this program, as a package or an image installs it.
package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

const (
	magic       = "MIRROR-1"
	trailerSize = len(magic) + 8 + sha256.Size
	variable    = "MIRROR_RUNTIME_DIR"
	interpreter = "bin/python3"
)

type payload struct {
	file   *os.File
	offset int64
	size   int64
	digest [sha256.Size]byte
}

func main() {
	self, err := os.Executable()
	if err != nil {
		fail(err)
	}
	found, err := find(self)
	if err != nil {
		fail(err)
	}
	if found == nil {
		tree := filepath.Join(filepath.Dir(self), "..", "lib", "mirror")
		if _, err := os.Stat(tree); err != nil {
			fail(fmt.Errorf("%s ends early and %s is not there; if this is the one file that holds "+
				"all, its copy is damaged: copy it again from its origin", self, tree))
		}
		fail(become(tree, ""))
	}
	var refused []string
	for _, folder := range folders() {
		tree, err := unpacked(folder, found)
		if err == nil {
			err = become(tree, self)
		}
		var damaged *damage
		if errors.As(err, &damaged) {
			fail(err)
		}
		refused = append(refused, err.Error())
	}
	fail(errors.New(strings.Join(refused, "; ") + "; name a folder that is yours, on a disk with " +
		"200 MiB free that is not mounted with noexec: " + variable + "=/a/folder"))
}

func fail(err error) {
	fmt.Fprintf(os.Stderr, "error: mirror cannot start: %v\n", err)
	os.Exit(1)
}

type damage struct{ problem string }

func (err *damage) Error() string {
	return err.problem + "; the copy is damaged: copy the file again from its origin"
}

// find reads the trailer; nil where there is none.
func find(self string) (*payload, error) {
	file, err := os.Open(self)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	trailer := make([]byte, trailerSize)
	end := info.Size() - int64(trailerSize)
	if _, err := file.ReadAt(trailer, end); err != nil {
		return nil, err
	}
	if string(trailer[:len(magic)]) != magic {
		return nil, nil
	}
	found := &payload{file: file, size: int64(binary.BigEndian.Uint64(trailer[len(magic):]))}
	copy(found.digest[:], trailer[len(magic)+8:])
	found.offset = end - found.size
	if found.offset < 0 {
		return nil, &damage{self + " is shorter than it says"}
	}
	return found, nil
}

// folders are where the tree may lie, the best first.
func folders() []string {
	if named := os.Getenv(variable); named != "" {
		return []string{named}
	}
	var found []string
	if cache := os.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(cache) {
		found = append(found, filepath.Join(cache, "mirror"))
	} else if home := os.Getenv("HOME"); filepath.IsAbs(home) {
		found = append(found, filepath.Join(home, ".cache", "mirror"))
	}
	own := fmt.Sprintf("mirror-%d", os.Getuid())
	return append(found, filepath.Join("/var/tmp", own), filepath.Join("/tmp", own))
}

// unpacked returns the tree of the payload in a folder, which it makes where there is none.
func unpacked(folder string, found *payload) (string, error) {
	name := hex.EncodeToString(found.digest[:8])
	tree := filepath.Join(folder, name)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	// Somebody else may have made a folder of that name in /tmp.
	if err := trusted(folder); err != nil {
		return "", err
	}
	if _, err := os.Lstat(tree); err == nil {
		return tree, trusted(tree)
	}
	lock, err := os.OpenFile(filepath.Join(folder, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", folder, err)
	}
	if _, err := os.Lstat(tree); err == nil { // another process was first
		return tree, trusted(tree)
	}
	partial := tree + ".partial"
	if err := os.RemoveAll(partial); err != nil { // of a process that was killed
		return "", err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(interrupted)
	go func() {
		<-interrupted
		os.RemoveAll(partial)
		os.Exit(130)
	}()
	if err := unpack(found, partial); err != nil {
		os.RemoveAll(partial)
		return "", err
	}
	if err := flush(partial); err != nil {
		return "", err
	}
	return tree, os.Rename(partial, tree)
}

// flush brings the disk of a folder up to date: the name comes behind it, since a power cut must
// not leave a tree of empty files.
func flush(folder string) error {
	file, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer file.Close()
	syncfs := map[string]uintptr{"amd64": 306, "arm64": 267}[runtime.GOARCH]
	if _, _, problem := syscall.Syscall(syncfs, file.Fd(), 0, 0); problem != 0 {
		return problem
	}
	return nil
}

// trusted refuses a folder in which others could put what we would run.
func trusted(folder string) error {
	info, err := os.Lstat(folder)
	if err != nil {
		return err
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if info.Mode()&os.ModeSymlink != 0 {
		if info, err = os.Stat(folder); err != nil {
			return err
		}
		if other := int(info.Sys().(*syscall.Stat_t).Uid); owner == os.Getuid() || owner == 0 {
			owner = other
		}
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", folder)
	}
	if owner != os.Getuid() && owner != 0 || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is open to others, who could change what runs", folder)
	}
	return nil
}

func unpack(found *payload, tree string) error {
	hash := sha256.New()
	section := io.NewSectionReader(found.file, found.offset, found.size)
	content := io.TeeReader(bufio.NewReaderSize(section, 1<<20), hash)
	zipped, err := gzip.NewReader(content)
	if err != nil {
		return &damage{err.Error()}
	}
	if err := os.Mkdir(tree, 0o700); err != nil {
		return err
	}
	members := tar.NewReader(zipped)
	for {
		member, err := members.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return &damage{err.Error()}
		}
		path := filepath.Join(tree, member.Name)
		if !strings.HasPrefix(path, tree+"/") {
			return &damage{member.Name + " leads outside"}
		}
		if member.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = write(path, os.FileMode(member.Mode), members)
		}
		if err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, content); err != nil {
		return err
	}
	if string(hash.Sum(nil)) != string(found.digest[:]) {
		return &damage{"its content has another SHA-256 than it states"}
	}
	return nil
}

func write(path string, mode os.FileMode, content io.Reader) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, content); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

// become runs the interpreter in place of this process; it returns only what went wrong.
func become(tree, executable string) error {
	python := filepath.Join(tree, interpreter)
	// Isolated: no variable, folder or site of another Python has a say.
	arguments := []string{python, "-I"}
	if executable != "" {
		arguments = append(arguments, "-X", "mirror_executable="+executable)
	}
	arguments = append(arguments, "-m", "mirror")
	err := syscall.Exec(python, append(arguments, os.Args[1:]...), append(os.Environ(), authorities()...))
	return fmt.Errorf("run %s: %w", python, err)
}

// authorities tells OpenSSL where this system keeps the certificates that it trusts: the library in
// the interpreter knows one place alone, and systems differ.
func authorities() []string {
	if os.Getenv("SSL_CERT_FILE") != "" || os.Getenv("SSL_CERT_DIR") != "" {
		return nil
	}
	for _, path := range []string{
		"/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Astra Linux, ALT
		"/etc/pki/tls/certs/ca-bundle.crt",   // RHEL and its like
		"/etc/ssl/ca-bundle.pem",             // SUSE
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	} {
		if _, err := os.Stat(path); err == nil {
			return []string{"SSL_CERT_FILE=" + path}
		}
	}
	return nil
}
