package postgres

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long a test waits for what should come soon. No test asserts a time.
const patience = 2 * time.Minute

// helperDir, in the environment, makes the test binary a hub that keeps the server of that data directory running;
// helperBin is its Config.Bin.
const (
	helperDir = "HUB_POSTGRES_TEST_DIR"
	helperBin = "HUB_POSTGRES_TEST_BIN"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		os.Exit(helper(dir))
	}
	removeStale()
	code := m.Run()
	os.RemoveAll(pristine.dir)
	os.Exit(code)
}

func helper(dir string) int {
	server, err := Start(context.Background(), Config{DataDir: dir, Bin: os.Getenv(helperBin), Holder: "the test's helper", Settings: fast})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("ready %d\n", server.PID())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends, in whatever way
	_ = server.Stop(context.Background())
	return 0
}

// startHelper starts a second hub. ready gives the pid of its server, or 0 if there will be none.
func startHelper(t *testing.T, dir string, env ...string) (helper *exec.Cmd, ready <-chan int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), helperDir+"="+dir), env...)
	out, err1 := cmd.StdoutPipe()
	in, err2 := cmd.StdinPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	pids := make(chan int, 1)
	go func() {
		defer close(pids)
		line, _ := bufio.NewReader(out).ReadString('\n')
		var pid int
		if _, err := fmt.Sscanf(line, "ready %d", &pid); err == nil {
			pids <- pid
		}
	}()
	return cmd, pids
}

// fast is for servers whose data nobody needs after a power cut.
var fast = map[string]string{"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}

// tempDir is a directory that also the server's user can enter, unlike t.TempDir, whose parent has mode 0700.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := makeTempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func makeTempDir() (string, error) {
	name := fmt.Sprintf("hub-test-%d-*", os.Getpid())
	dir, err := os.MkdirTemp("/dev/shm", name)
	if err != nil {
		dir, err = os.MkdirTemp("", name)
	}
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o711)
}

// removeStale removes the directories of test processes that were killed: they take memory.
func removeStale() {
	dirs, _ := filepath.Glob("/dev/shm/hub-test-*-*")
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "hub-test-%d-", &pid); err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			os.RemoveAll(dir)
		}
	}
}

// emptyDataDir is a data directory still to be made.
func emptyDataDir(t testing.TB) string { return filepath.Join(tempDir(t), ".hub") }

// newDataDir is a data directory with a cluster that has never been used: a copy, since initdb is what these tests would
// spend most of their time with.
func newDataDir(t testing.TB) string {
	t.Helper()
	pristine.Do(func() {
		dir, err := makeTempDir()
		pristine.dir = dir
		if err == nil {
			var server *Server
			if server, err = Start(context.Background(), Config{DataDir: dir, Settings: fast}); err == nil {
				err = server.Stop(context.Background())
			}
		}
		pristine.err = err
	})
	if pristine.err != nil {
		t.Fatal(pristine.err)
	}
	dir := emptyDataDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", layout{pristine.dir}.cluster(), layout{dir}.cluster()).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
	return dir
}

var pristine struct {
	sync.Once
	dir string
	err error
}

// start starts a server that is stopped when the test ends.
func start(t testing.TB, cfg Config) *Server {
	t.Helper()
	server, err := tryStart(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

func tryStart(t testing.TB, cfg Config) (*Server, error) {
	t.Helper()
	if cfg.Settings == nil {
		cfg.Settings = fast
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server, err := Start(ctx, cfg)
	if err == nil {
		t.Cleanup(func() { stop(t, server) })
	}
	return server, err
}

func stop(t testing.TB, server *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// query runs SQL as the superuser and gives the first column of the last row as text.
func query(t testing.TB, server *Server, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.URL("hub", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	if rows := results[len(results)-1].Rows; len(rows) > 0 {
		return string(rows[len(rows)-1][0])
	}
	return ""
}

const (
	putData = `CREATE TABLE kept (what text); INSERT INTO kept VALUES ('everything')`
	getData = `SELECT what FROM kept`
)

func wantData(t testing.TB, server *Server) {
	t.Helper()
	if got := query(t, server, getData); got != "everything" {
		t.Errorf("the table says %q", got)
	}
}

func waitDone(t testing.TB, server *Server) {
	t.Helper()
	select {
	case <-server.Done():
	case <-time.After(patience):
		t.Fatal("the server should have ended")
	}
}

func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never happened: " + what)
		}
	}
}

func wantMode(t testing.TB, path string, mode os.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Error(err)
	} else if info.Mode().Perm() != mode {
		t.Errorf("%s has mode %o, not %o", path, info.Mode().Perm(), mode)
	}
}

func wantText(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in the error:\n%v", part, err)
		}
	}
}

func isRoot() bool { return os.Geteuid() == 0 }

func uidOf(t testing.TB, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Uid)
}
