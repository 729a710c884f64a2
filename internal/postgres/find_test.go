package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// fakeInstall is a bin directory whose postgres can only tell its version.
func fakeInstall(t *testing.T, major int, initdb string) string {
	t.Helper()
	return fakeInstallIn(t, tempDir(t), major, initdb)
}

func fakeInstallIn(t *testing.T, dir string, major int, initdb string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writeScript(t, filepath.Join(dir, "postgres"), fmt.Sprintf("echo 'postgres (PostgreSQL) %d.3 (Some 1.2)'", major))
	writeScript(t, filepath.Join(dir, "initdb"), initdb)
	return dir
}

// writeScript writes a program. A file that any process has open for writing cannot be run (ETXTBSY), and a process that
// another test forks has it open until it execs: hence the lock, which keeps this process from forking.
func writeScript(t *testing.T, file, script string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestFindThisMachines(t *testing.T) {
	t.Parallel()
	in, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	again, err := Find(t.Context(), in.BinDir)
	if err != nil || again.BinDir != in.BinDir || again.Major != in.Major || !slices.Equal(again.Env, in.Env) {
		t.Errorf("%+v, %v; not %+v", again, err, in)
	}
}

func TestHint(t *testing.T) {
	t.Parallel()
	_, err := Find(t.Context(), "/not/there") // although there is a server elsewhere
	wantText(t, err, "/not/there: no such directory", "make postgres", "--postgres-bin", "DATABASE_URL")

	for version, ok := range map[int]bool{9: false, MinMajor - 1: false, MinMajor: true, 99: true} {
		in, err := Find(t.Context(), fakeInstall(t, version, ""))
		if ok && (err != nil || in.Major != version) {
			t.Errorf("%d: %+v %v", version, in, err)
		}
		if !ok {
			wantText(t, err, fmt.Sprintf("it is version %d, and hub needs 15 or newer", version))
		}
	}
}

func TestFindSaysWhereItLooked(t *testing.T) {
	t.Parallel()
	base := tempDir(t)
	old := fakeInstallIn(t, base+"/fixed/14/bin", 14, "")
	onlyPostgres := fakeInstallIn(t, base+"/path", 16, "")
	broken := fakeInstallIn(t, base+"/cache/17/bin", 17, "")
	if err := os.Remove(onlyPostgres + "/initdb"); err != nil {
		t.Fatal(err)
	}
	writeScript(t, broken+"/postgres", "echo 'libpq.so.5: cannot open' >&2; exit 127")
	p := places{
		fixed:  []string{base + "/fixed/*/bin", base + "/local"},
		path:   onlyPostgres,
		cached: base + "/cache/*/bin",
	}
	_, err := p.find(t.Context(), "", 0)
	wantText(t, err,
		"no PostgreSQL server (initdb and postgres, version 15 or newer) was found",
		old+": it is version 14",
		base+"/local: nothing there",
		onlyPostgres+": no initdb there",
		"no pg_config in PATH",
		broken+": postgres --version: exit status 127 libpq.so.5: cannot open",
		"make postgres", "--postgres-bin", "DATABASE_URL")

	fakeInstallIn(t, onlyPostgres, 16, "")
	if in, err := p.find(t.Context(), "", 0); err != nil || in.Major != 16 {
		t.Errorf("%+v %v", in, err)
	}
}

func TestFindPrefers(t *testing.T) {
	t.Parallel()
	base := tempDir(t)
	for _, major := range []int{9, 15, 16, 101} { // as text, 9 is the newest
		fakeInstallIn(t, fmt.Sprintf("%s/fixed/%d/bin", base, major), major, "")
	}
	cached := fakeInstallIn(t, base+"/cache/18/bin", 18, "")
	elsewhere := fakeInstallIn(t, base+"/elsewhere", 20, "")
	linked := base + "/path"
	if err := os.Mkdir(linked, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere+"/postgres", linked+"/postgres"); err != nil { // and no initdb beside it
		t.Fatal(err)
	}
	configured := fakeInstallIn(t, base+"/configured", 19, "")
	writeScript(t, linked+"/pg_config", `[ "$1" = --bindir ] && echo `+configured)

	p := places{fixed: []string{base + "/fixed/*/bin"}, path: "/not/there:" + linked, cached: base + "/cache/*/bin"}
	for want, dir := range map[int]string{
		0:   base + "/fixed/101/bin", // the newest of the first place
		15:  base + "/fixed/15/bin",
		18:  cached,
		19:  configured,
		20:  elsewhere,
		123: base + "/fixed/101/bin", // better that than nothing: it makes for a clearer error
	} {
		if in, err := p.find(t.Context(), "", want); err != nil || in.BinDir != dir {
			t.Errorf("version %d: %+v %v", want, in, err)
		}
	}
}

func TestFindOutOfReach(t *testing.T) {
	t.Parallel()
	closed := filepath.Join(tempDir(t), "closed")
	bin := fakeInstallIn(t, closed+"/bin", 16, "")
	if isRoot() {
		if err := os.Chmod(closed, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Find(t.Context(), bin)
		wantText(t, err, "may not enter "+closed)
		if err := os.Chmod(closed, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Find(t.Context(), bin); err != nil {
		t.Error(err)
	}
}

func TestEnvOfAnUnpackedTree(t *testing.T) {
	t.Parallel()
	base := tempDir(t)
	for _, dir := range []string{"usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in, err := Find(t.Context(), fakeInstallIn(t, base+"/usr/lib/postgresql/16/bin", 16, ""))
	want := []string{"LD_LIBRARY_PATH=" + base + "/usr/lib/x86_64-linux-gnu:" + base + "/lib/x86_64-linux-gnu"}
	if err != nil || !slices.Equal(in.Env, want) {
		t.Errorf("%v %v", in.Env, err)
	}
	in, err = Find(t.Context(), fakeInstallIn(t, base+"/opt/bin", 16, ""))
	if err != nil || in.Env != nil {
		t.Errorf("%v %v", in.Env, err)
	}
	if env := unpackedEnv("/usr/lib/postgresql/15/bin"); env != nil {
		t.Errorf("the system's own: %v", env)
	}
}
