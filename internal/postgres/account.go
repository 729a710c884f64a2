package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// rootDataDir is where the data of a hub that runs as root goes when the server cannot get at the directory wanted.
const rootDataDir = "/var/lib/hub"

// account is the system user that the server runs as. initdb and postgres refuse to run as root, and containers and CI
// shells often are root: then it is somebody else, and otherwise it is whoever runs hub.
type account struct {
	name     string
	uid, gid int
	switched bool // it is not the user that hub runs as
}

// serverAccount is the account of a new cluster: the user of this process or, as root, the user postgres, or else nobody.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{name: userName(os.Geteuid()), uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			return switchTo(u)
		}
	}
	return account{}, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody to run it as")
}

// clusterAccount is the account for the cluster in dir. As root that is the owner of the directory, if it is there
// already: PostgreSQL accepts no other, and the user postgres may have come with a package after nobody made the cluster.
func clusterAccount(dir string) (account, error) {
	usual, err := serverAccount()
	if err != nil {
		return account{}, err
	}
	uid, there := ownerOf(dir)
	switch {
	case !there || uid == usual.uid:
		return usual, nil
	case !usual.switched:
		return account{}, fmt.Errorf("%s belongs to user %s; run hub as that user, or as root", dir, userName(uid))
	case uid == 0:
		// Not a cluster then, or an empty directory that initdb will replace: the caller looks into it.
		return usual, nil
	}
	u, err := user.LookupId(strconv.Itoa(uid))
	if err != nil {
		return account{}, fmt.Errorf("the owner of %s: %w", dir, err)
	}
	return switchTo(u)
}

func switchTo(u *user.User) (account, error) {
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return account{}, fmt.Errorf("user %s: %w", u.Username, err)
	}
	return account{name: u.Username, uid: uid, gid: gid, switched: true}, nil
}

// attributes are how every program of PostgreSQL is started by this package: in a process group of its own, so that a
// Ctrl-C in hub's terminal is hub's to handle; with SIGINT (fast shutdown) when hub dies; as this account and without
// supplementary groups.
//
// The kernel sends that signal when the *thread* ends that started the process: the caller must have locked its thread,
// and must keep it for as long as the process lives.
func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGINT}
	if a.switched {
		attr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return attr
}

// own gives path to the account; nothing is to be done unless hub runs as root.
func (a account) own(path string) error {
	if !a.switched {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

// mayEnter says whether the account may enter every directory on the way to dir and dir itself, as far as they exist, and
// if not, which it may not. It reads mode bits, not ACLs: the account's processes have no supplementary groups.
func (a account) mayEnter(dir string) (obstacle string, ok bool) {
	if !a.switched {
		return "", true // the operating system will tell
	}
	if parent := filepath.Dir(dir); parent != dir {
		if obstacle, ok = a.mayEnter(parent); !ok {
			return obstacle, false
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", true // not there: whoever makes it sees to it
	}
	const executeOther, executeGroup, executeOwner fs.FileMode = 0o001, 0o010, 0o100
	need := executeOther
	switch st := info.Sys().(*syscall.Stat_t); {
	case int(st.Uid) == a.uid:
		need = executeOwner
	case int(st.Gid) == a.gid:
		need = executeGroup
	}
	return dir, info.Mode()&need != 0
}

// Reachable reports whether the user that the server would run as can get to dir, that is, may enter every directory above
// it as far as they exist; dir itself is hub's to open. It is true for everybody but root, whose server runs as somebody
// else and cannot enter, for one, a checkout under /root.
func Reachable(dir string) bool {
	resolved, err := resolve(dir)
	if err != nil {
		return true // nothing to say against it; Start will tell
	}
	a, err := clusterAccount(layout{resolved}.cluster())
	if err != nil {
		return true
	}
	_, ok := a.mayEnter(filepath.Dir(resolved))
	return ok
}

// DefaultDataDir is the data directory for who named none: wanted or, where the server could not reach that (see
// Reachable), /var/lib/hub. moved tells the two apart; the caller should tell the user, who may look for the data.
func DefaultDataDir(wanted string) (dir string, moved bool) {
	if Reachable(wanted) {
		return wanted, false
	}
	return rootDataDir, true
}

func ownerOf(path string) (uid int, there bool) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	return int(info.Sys().(*syscall.Stat_t).Uid), true
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}
