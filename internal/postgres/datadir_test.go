package postgres

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestClusterOfAnotherVersion(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	stop(t, start(t, Config{DataDir: dir}))

	versionFile := filepath.Join(dir, "postgres/PG_VERSION")
	right, err := os.ReadFile(versionFile)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(versionFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("14\n")
	before := snapshot(t, dir)
	_, err = tryStart(t, Config{DataDir: dir})
	wantText(t, err, "made by PostgreSQL 14", "has not been touched", "pg_upgrade")
	if other := (*VersionError)(nil); !errors.As(err, &other) || other.Cluster != 14 || other.Server.Major < MinMajor {
		t.Errorf("%+v", other)
	}
	if after := snapshot(t, dir); after != before {
		t.Errorf("it has been touched:\n%s\nwas\n%s", after, before)
	}

	write(string(right))
	start(t, Config{DataDir: dir})
}

func TestForeignDirectory(t *testing.T) {
	t.Parallel()
	dir := emptyDataDir(t)
	photo := filepath.Join(dir, "postgres/photo.jpg")
	if err := os.MkdirAll(filepath.Dir(photo), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(photo, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	_, err := tryStart(t, Config{DataDir: dir})
	wantText(t, err, "holds no PostgreSQL cluster", "has not been touched")
	if after := snapshot(t, dir); after != before {
		t.Errorf("it has been touched:\n%s\nwas\n%s", after, before)
	}

	if err := os.Remove(photo); err != nil {
		t.Fatal(err)
	}
	start(t, Config{DataDir: dir}) // an empty directory is fine: somebody may have mounted a volume
}

// snapshot lists a tree with modes, owners, sizes and times.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			lines = append(lines, strings.Join([]string{path, info.Mode().String(), userName(uidOf(t, path)), info.ModTime().String()}, " "))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func TestInitdbIsCutOff(t *testing.T) {
	t.Parallel()
	real, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	dir := emptyDataDir(t)
	l := layout{dir}
	// It has much left to do when hub is killed. (exec: the process that hub started is the one that gets the signal.)
	slow := fakeInstall(t, real.Major, `mkdir "${1#--pgdata=}/base"; echo 15 >"${1#--pgdata=}/PG_VERSION"; exec sleep 600`)
	hub, ready := startHelper(t, dir, helperBin+"="+slow)
	half := ""
	eventually(t, "initdb is at work", func() bool {
		made, _ := filepath.Glob(filepath.Join(l.newClusters(), "PG_VERSION"))
		if len(made) == 1 {
			half = filepath.Dir(made[0])
		}
		return half != ""
	})
	if err := hub.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if pid := <-ready; pid != 0 {
		t.Fatal("the helper should not have got so far")
	}
	for path, there := range map[string]bool{half: true, l.cluster(): false} {
		if _, err := os.Stat(path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}

	start(t, Config{DataDir: dir})
	if left, _ := filepath.Glob(l.newClusters()); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestFailingInitdb(t *testing.T) {
	t.Parallel()
	real, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	bin := fakeInstall(t, real.Major, "echo 'initdb: error: no time'; exit 1")
	dir := emptyDataDir(t)
	_, err = tryStart(t, Config{DataDir: dir, Bin: bin})
	wantText(t, err, "initdb: exit status 1", "no time")
	if left, _ := filepath.Glob(filepath.Join(dir, "postgres*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}

	start(t, Config{DataDir: dir, Bin: real.BinDir})
}

func TestSystemWithoutTheLocale(t *testing.T) {
	t.Parallel()
	real, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	env := ":"
	if len(real.Env) > 0 { // install.sh has unpacked it
		env = "export '" + strings.Join(real.Env, "' '") + "'"
	}
	bin := fakeInstall(t, real.Major, env+`
		case "$*" in *--locale=C.UTF-8*) echo 'initdb: error: invalid locale name "C.UTF-8"'; exit 1 ;; esac
		exec '`+real.BinDir+`/initdb' "$@"`)
	writeScript(t, filepath.Join(bin, "postgres"), env+`; exec '`+real.BinDir+`/postgres' "$@"`)
	server := start(t, Config{DataDir: emptyDataDir(t), Bin: bin})
	if got := query(t, server, sortedLetters); got != "BZaäé" {
		t.Errorf("sorted: %s", got)
	}
	if got := query(t, server, `SHOW server_encoding`); got != "UTF8" {
		t.Error(got)
	}
}

func TestOutOfReach(t *testing.T) {
	t.Parallel()
	closed := filepath.Join(tempDir(t), "closed")
	dir := filepath.Join(closed, "sub/.hub")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	if isRoot() {
		if Reachable(dir) {
			t.Error("the server's user can enter a directory of mode 0700?")
		}
		if got, moved := DefaultDataDir(dir); got != "/var/lib/hub" || !moved {
			t.Errorf("DefaultDataDir: %s, %v", got, moved)
		}
		_, err := tryStart(t, Config{DataDir: dir})
		wantText(t, err, "may not enter "+closed, "--data-dir /var/lib/hub")
		if err := os.Chmod(closed, 0o711); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // the refused start has made it
			t.Fatal(err)
		}
	}
	// Who is not root has a server that runs as the same user.
	if !Reachable(dir) {
		t.Error("out of reach")
	}
	if got, moved := DefaultDataDir(dir); got != dir || moved {
		t.Errorf("DefaultDataDir: %s, %v", got, moved)
	}
	start(t, Config{DataDir: dir})
}

func TestDirectoryOfSomebodyElse(t *testing.T) {
	t.Parallel()
	if !isRoot() {
		// What belongs to root cannot be made here; the other way round is all there is to see.
		if _, err := clusterAccount("/"); err == nil {
			t.Error("the cluster in / is ours?")
		}
		return
	}
	// A cluster made by another user is served as that user, whoever is the usual one by now.
	dir := emptyDataDir(t)
	l := layout{dir}
	if err := os.MkdirAll(l.cluster(), 0o700); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chown(l.cluster(), nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	server := start(t, Config{DataDir: dir})
	if uid := uidOf(t, filepath.Join("/proc", itoa(server.PID()))); uid != nobody {
		t.Errorf("the server runs as %d", uid)
	}
	wantMode(t, dir, 0o700) // its owner can enter as it is
}

func TestResolve(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	if err := os.Symlink(base, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(base, "not/there")
	for _, dir := range []string{want, base + "/link/not/there", base + "/link/link/x/../not//there/"} {
		if got, err := resolve(dir); err != nil || got != want {
			t.Errorf("resolve(%s) = %s, %v; not %s", dir, got, err, want)
		}
	}
	if got, err := resolve("relative"); err != nil || !filepath.IsAbs(got) {
		t.Errorf("resolve(relative) = %s, %v", got, err)
	}
	if err := os.WriteFile(base+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(base + "/file/below"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	if _, err := resolve(""); err == nil {
		t.Error("an empty name should be refused")
	}
}
