package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// InUseError says that a data directory is in use by another hub (or, very rarely, by a PostgreSQL server that somebody
// started by hand).
type InUseError struct {
	Dir    string
	PID    int       // of the holder; 0 if it is not known
	Since  time.Time // when the holder took the directory; zero if it is not known
	Holder string    // what the holder says of itself: its Config.Holder
	Gone   bool      // the holder has died, but its server has not ended yet
}

func (e *InUseError) Error() string {
	if e.Gone && e.PID == 0 {
		return fmt.Sprintf("the data directory %s is in use: the PostgreSQL server of a hub that has ended is still shutting down", e.Dir)
	}
	who := e.Holder
	if who == "" {
		who = "another hub"
	}
	if e.PID != 0 {
		who += fmt.Sprintf(", pid %d", e.PID)
	}
	if !e.Since.IsZero() {
		who += ", since " + e.Since.Local().Format(time.RFC3339)
	}
	text := fmt.Sprintf("the data directory %s is in use by %s", e.Dir, who)
	if e.Gone {
		text += "; that process has died, but its PostgreSQL server is still shutting down"
	}
	return text
}

const (
	lockPoll = 20 * time.Millisecond
	// orphanGrace is how long the server processes of a dead hub are left alone. All but a backend that computes without a
	// pause are gone within a fraction of it.
	orphanGrace = 3 * time.Second
	// drainTimeout is how long a new hub waits for the server of a dead one: its last checkpoint may take a while.
	drainTimeout = 60 * time.Second
)

// dirLock is the flock on hub.lock: one hub per data directory.
//
// The server inherits the file, and so do all its processes. A flock belongs to the open file and not to a process: when
// hub is killed, it is held until the last backend is gone, which is exactly until the cluster may be served anew. The
// file is open for reading only, since those processes need not be trusted with more.
type dirLock struct {
	file *os.File
}

// lockHolder is what hub.lock says, in JSON: for InUseError, and for the curious.
type lockHolder struct {
	PID     int       `json:"pid"`
	Started uint64    `json:"started"` // see processInfo.started: a pid alone may have been given to somebody else since
	Since   time.Time `json:"since"`
	Name    string    `json:"holder"`
}

// lockDir takes the data directory for this process. It fails at once with an InUseError if a living process holds it. If
// that process is dead it waits, up to drainTimeout or until ctx ends, for its server to end, too.
func lockDir(ctx context.Context, l layout, name string) (*dirLock, error) {
	file, err := os.OpenFile(l.lock(), os.O_RDONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); ; {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			file.Close()
			return nil, fmt.Errorf("flock %s: %w", l.lock(), err)
		}
		holder := readHolder(l)
		inUse := &InUseError{Dir: l.root, PID: holder.PID, Since: holder.Since, Holder: holder.Name, Gone: !holder.alive()}
		if !inUse.Gone || time.Since(begin) > drainTimeout {
			file.Close()
			return nil, inUse
		}
		if time.Since(begin) > orphanGrace {
			quitOrphans(l.cluster())
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, inUse
		case <-time.After(lockPoll):
		}
	}
	lock := &dirLock{file: file}
	if err := lock.write(l, name); err != nil {
		file.Close()
		return nil, err
	}
	return lock, nil
}

func (k *dirLock) write(l layout, name string) error {
	self, err := readProcess(os.Getpid())
	if err != nil {
		return err
	}
	text, err := json.Marshal(lockHolder{PID: os.Getpid(), Started: self.started, Since: time.Now().Truncate(time.Second), Name: name})
	if err != nil {
		return err
	}
	return os.WriteFile(l.lock(), append(text, '\n'), 0o600)
}

// release gives the data directory up. The file is emptied first, not removed: processes of the server may have it open
// still, and the next to come must wait for these, not for this process, which may live on.
func (k *dirLock) release(l layout) {
	_ = os.Truncate(l.lock(), 0)
	k.file.Close()
}

// readHolder is what hub.lock says, or nothing if it says nothing (yet).
func readHolder(l layout) (h lockHolder) {
	if text, err := os.ReadFile(l.lock()); err == nil {
		_ = json.Unmarshal(text, &h)
	}
	return h
}

func (h lockHolder) alive() bool {
	p, err := readProcess(h.PID)
	return err == nil && p.started == h.Started && !p.zombie
}
