package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// layout names what is inside the data directory root, an absolute path without symlinks. See the package comment.
type layout struct{ root string }

func (l layout) cluster() string     { return filepath.Join(l.root, "postgres") }
func (l layout) newClusters() string { return filepath.Join(l.root, "postgres.new-*") }
func (l layout) run() string         { return filepath.Join(l.root, "run") }
func (l layout) log() string         { return filepath.Join(l.root, "postgres.log") }
func (l layout) lock() string        { return filepath.Join(l.root, "hub.lock") }

// resolve makes dir absolute and resolves the symlinks in it, as far as it exists: two names of one directory must lead to
// one lock and one socket.
func resolve(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("no data directory given")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	missing := ""
	for existing := abs; ; existing = filepath.Dir(existing) {
		real, err := filepath.EvalSymlinks(existing)
		switch {
		case err == nil:
			return filepath.Join(real, missing), nil
		case !errors.Is(err, fs.ErrNotExist) || existing == filepath.Dir(existing):
			return "", fmt.Errorf("the data directory %s: %w", dir, err)
		}
		missing = filepath.Join(filepath.Base(existing), missing)
	}
}

// VersionError says that a data directory holds a cluster of another major version than the server's. It has not been
// touched: PostgreSQL cannot read it, and converting it is for a human to do, with a backup.
type VersionError struct {
	Dir     string // the cluster's directory
	Cluster int    // the major version that made it
	Server  Install
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s was made by PostgreSQL %d and cannot be served by version %d (%s). It has not been touched. "+
		"Install PostgreSQL %d and name its bin directory with --postgres-bin, or move the data to the new version with pg_upgrade or pg_dump",
		e.Dir, e.Cluster, e.Server.Major, e.Server.BinDir, e.Cluster)
}

// mayServe says whether the server fits the cluster, of which major is the version, or 0 if it is still to be made.
func (l layout) mayServe(in Install, major int) error {
	if major == 0 || major == in.Major {
		return nil
	}
	return &VersionError{Dir: l.cluster(), Cluster: major, Server: in}
}

// majorOf is the major version of the cluster in dir, or 0 if there is none yet. It is an error if there is something that
// is no cluster: that is not ours to replace.
func majorOf(dir string) (int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err == nil {
		major, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return 0, fmt.Errorf("%s holds no PostgreSQL cluster that hub could use: PG_VERSION says %q", dir, text)
		}
		return major, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, err
	case len(entries) > 0:
		return 0, fmt.Errorf("%s is not empty, and holds no PostgreSQL cluster: it has no PG_VERSION. It has not been touched", dir)
	}
	return 0, nil
}

// open makes the data directory if it is missing and lets the server's account pass through it.
//
// As root it stays root's own, so that what lies beside the cluster (hub.lock, hub's admin key) can be neither replaced nor
// even listed by that account: its group, of which that account is the only likely member, gets the right to pass (0710).
func (l layout) open(a account) error {
	if err := os.MkdirAll(l.root, 0o700); err != nil {
		return err
	}
	if obstacle, ok := a.mayEnter(filepath.Dir(l.root)); !ok {
		return fmt.Errorf("the data directory %s is out of reach for the user %s, whom PostgreSQL must run as because it does not run as root: "+
			"that user may not enter %s. Choose another, for example --data-dir %s", l.root, a.name, obstacle, rootDataDir)
	}
	if _, ok := a.mayEnter(l.root); ok {
		return nil
	}
	info, err := os.Stat(l.root)
	if err != nil {
		return err
	}
	if uid, _ := ownerOf(l.root); uid != os.Geteuid() {
		return fmt.Errorf("the data directory %s belongs to user %s, and the user %s, whom PostgreSQL must run as, may not enter it: "+
			"run hub as %[2]s, or chmod o+x it", l.root, userName(uid), a.name)
	}
	if err := os.Chown(l.root, -1, a.gid); err != nil {
		return err
	}
	return os.Chmod(l.root, info.Mode().Perm()|0o010)
}
