package postgres

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	port         = "5432" // of the socket's name only: the server does not listen on TCP
	socketName   = ".s.PGSQL." + port
	maxSocketLen = 107 // bytes: sun_path is 108, and ends with a NUL
)

// socketDir makes the directory of the server's socket, mode 0700 and owned by the account, and says where it is: run in
// the data directory or, where the path of the socket would be too long, a directory for temporary files.
func (l layout) socketDir(a account) (string, error) {
	var unfit []string
	for _, dir := range l.socketDirs(a) {
		if why := unfitForSocket(dir); why != "" {
			unfit = append(unfit, dir+" "+why)
			continue
		}
		return dir, makePrivate(dir, a)
	}
	return "", fmt.Errorf("no place for the server's socket: %s", strings.Join(unfit, "; "))
}

// socketDirs are the candidates. The name of all but the first is derived from the data directory, so that hubs with
// different data do not meet there.
func (l layout) socketDirs(a account) []string {
	sum := sha256.Sum256([]byte(l.root))
	name := fmt.Sprintf("hub-%d-%s", a.uid, hex.EncodeToString(sum[:6]))
	dirs := []string{l.run()}
	// Root's XDG_RUNTIME_DIR is root's only, and out of reach for the server.
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(runtime) && !a.switched {
		if info, err := os.Stat(runtime); err == nil && info.IsDir() { //nolint:gosec // G703: the user's own environment
			dirs = append(dirs, filepath.Join(runtime, name))
		}
	}
	for _, temp := range []string{os.TempDir(), "/tmp"} {
		if _, ok := a.mayEnter(temp); ok && filepath.IsAbs(temp) {
			dirs = append(dirs, filepath.Join(temp, name))
		}
	}
	return dirs
}

func unfitForSocket(dir string) string {
	switch length := len(filepath.Join(dir, socketName)); {
	case length > maxSocketLen:
		return fmt.Sprintf("is too long (%d bytes with the socket's name, %d are possible)", length, maxSocketLen)
	case strings.Contains(dir, ","):
		return "has a comma, which separates hosts in a connection string"
	}
	return ""
}

// makePrivate makes dir for the account alone. In a directory for temporary files somebody else may have been there
// first, and would get to see every connection: so what is there must be a directory, and ours.
func makePrivate(dir string, a account) error {
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if !info.IsDir() || owner != a.uid && owner != os.Geteuid() {
		return fmt.Errorf("%s is needed for the server's socket, but is not a directory of user %s", dir, a.name)
	}
	if err := a.own(dir); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700) //nolint:gosec // G302: a directory needs the x
}
