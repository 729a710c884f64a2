package pgtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	memory = "/dev/shm"
	// roomNeeded, in bytes, must be free there: a database takes 8 MB at least, and a container's /dev/shm may have 64 MB.
	roomNeeded = 1 << 30
	dirPrefix  = "hub-pgtest-"
)

// makeDir makes the directory of this process's cluster, in memory if there is room, and removes those of processes that
// were killed before they could do so themselves.
func makeDir() (string, error) {
	bases := []string{os.TempDir()}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(memory, &fs); err == nil && fs.Bavail*uint64(fs.Bsize) >= roomNeeded {
		bases = []string{memory, os.TempDir()}
	}
	var problems error
	for _, base := range bases {
		dir, err := os.MkdirTemp(base, fmt.Sprintf("%s%d-*", dirPrefix, os.Getpid()))
		if err != nil {
			problems = errors.Join(problems, err)
			continue
		}
		removeStale(base)
		return dir, nil
	}
	return "", problems
}

// removeStale removes the clusters of the dead from base. Whatever cannot be removed, because it belongs to somebody else,
// is left to them.
func removeStale(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	for _, dir := range dirs {
		if isStale(dir) {
			_ = os.RemoveAll(dir)
		}
	}
}

// isStale says whether the process that made dir is dead, and its server too, which may take a moment longer. The lock
// tells the latter, and decides about processes of another container, whose pids mean nothing here.
func isStale(dir string) bool {
	pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
	n, err := strconv.Atoi(pid)
	if err != nil || !errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
		return false
	}
	lock, err := os.Open(filepath.Join(dir, "hub.lock"))
	if errors.Is(err, os.ErrNotExist) { // killed before it got that far, or in another container and about to
		info, err := os.Stat(dir)
		return err == nil && time.Since(info.ModTime()) > time.Hour
	}
	if err != nil {
		return false
	}
	defer lock.Close()
	return syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}
