package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// processInfo is what /proc/PID/stat tells about a process.
type processInfo struct {
	name    string // of its program, at most 15 bytes
	zombie  bool   // dead, but not reaped by its parent: kill(pid, 0) calls such a process alive, and PostgreSQL believes it
	started uint64 // clock ticks after the machine's start
}

func readProcess(pid int) (processInfo, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processInfo{}, err
	}
	// "12 (some name) S 1 ...": the name may hold spaces and parentheses. What follows it is field 3, field 4, ...
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return processInfo{}, fmt.Errorf("/proc/%d/stat: unexpected %q", pid, text)
	}
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 20 {
		return processInfo{}, fmt.Errorf("/proc/%d/stat: unexpected %q", pid, text)
	}
	started, err := strconv.ParseUint(fields[22-3], 10, 64)
	if err != nil {
		return processInfo{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return processInfo{name: string(text[open+1 : end]), zombie: fields[0] == "Z", started: started}, nil
}

// serves says whether pid is a living process of a PostgreSQL server for the cluster in dir: they all work in there.
func serves(pid int, cluster os.FileInfo) bool {
	p, err := readProcess(pid)
	if err != nil || p.zombie || p.name != "postgres" {
		return false
	}
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && os.SameFile(cwd, cluster)
}

// quitOrphans sends SIGQUIT (end at once, do not tidy up) to the backends whose postmaster is dead. They notice that by
// themselves when they next wait for something, but a query that only computes does not wait, and as long as it goes on
// the shared memory is in use and no new server can start. Its client is gone together with hub.
//
// It does nothing while the postmaster lives: that one is about to end them properly.
func quitOrphans(dir string) {
	cluster, err := os.Stat(dir)
	if err != nil || serves(postmasterPID(dir), cluster) {
		return
	}
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !serves(pid, cluster) {
			continue
		}
		// The handle is to the process, not to its number: after the second look it cannot be somebody else.
		if process, err := os.FindProcess(pid); err == nil {
			if serves(pid, cluster) {
				_ = process.Signal(syscall.SIGQUIT)
			}
			_ = process.Release()
		}
	}
}

// postmasterPID is the first line of postmaster.pid, or 0 if that is missing: no server runs, and none has crashed.
func postmasterPID(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(strings.TrimSpace(first))
	return pid
}

// clearStalePID removes a postmaster.pid that would keep a new server from starting although no server runs. The caller
// holds the lock, so no server started by hub is there; one started by hand is an InUseError.
//
// PostgreSQL takes the pid in that file for a running server whenever a process of that number exists: a zombie, or
// anything else in a container whose pids begin anew with each start. In all other cases the file is left to PostgreSQL,
// which finds the shared memory of a crashed server through it.
func (l layout) clearStalePID() error {
	pid := postmasterPID(l.cluster())
	if pid <= 0 {
		return nil
	}
	cluster, err := os.Stat(l.cluster())
	if err != nil {
		return err
	}
	if serves(pid, cluster) {
		return &InUseError{Dir: l.root, PID: pid, Holder: "a PostgreSQL server that hub did not start"}
	}
	if _, err := readProcess(pid); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return os.Remove(filepath.Join(l.cluster(), "postmaster.pid"))
}
