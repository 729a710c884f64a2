package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// mode, in the environment of the test binary, makes it a test process of another kind, for the tests of what is seen from
// outside only.
const mode = "HUB_PGTEST_MODE"

func TestMain(m *testing.M) {
	switch os.Getenv(mode) {
	case "no Main":
		os.Exit(m.Run())
	case "failing prepare":
		os.Exit(Main(m, func(context.Context, string) error { return errors.New("no such migration") }, "app"))
	case "no role":
		os.Exit(Main(m, nil, "app"))
	}
	os.Exit(Main(m, prepare, "app"))
}

func prepare(ctx context.Context, adminURL string) error {
	conn, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `CREATE ROLE app LOGIN; CREATE TABLE notes (text text); GRANT SELECT, INSERT ON notes TO app;
		INSERT INTO notes VALUES ('from prepare')`)
	return err // and the connection stays open
}

func query(t testing.TB, url, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var answer string
	if err := conn.QueryRow(ctx, sql).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

func TestDatabasesAreSeparate(t *testing.T) {
	t.Parallel()
	for i := range 40 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			url := Database(t)
			query(t, url, `INSERT INTO notes VALUES ('mine') RETURNING text`)
			if got := query(t, url, `SELECT string_agg(text, ', ' ORDER BY text) FROM notes`); got != "from prepare, mine" {
				t.Errorf("the notes are %q", got)
			}
		})
	}
}

func TestEachCallMakesAnother(t *testing.T) {
	t.Parallel()
	first, second := Database(t), Database(t)
	query(t, first, `INSERT INTO notes VALUES ('mine') RETURNING text`)
	if got := query(t, first, `SELECT count(*)::text FROM notes`); got != "2" {
		t.Errorf("%s notes in the first", got)
	}
	if got := query(t, second, `SELECT count(*)::text FROM notes`); got != "1" {
		t.Errorf("%s notes in the second", got)
	}
	if got := query(t, URL(t, "hub"), `SELECT count(*)::text FROM notes`); got != "1" {
		t.Error("URL is not that of the latest")
	}
}

func TestRoles(t *testing.T) {
	t.Parallel()
	const who = `SELECT current_user || ' ' || current_database() || ' ' || (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)`
	name := strings.Fields(query(t, Database(t), who))
	if name[0] != "app" || !strings.HasSuffix(name[1], "_testroles") || name[2] != "false" {
		t.Errorf("%v", name)
	}
	if got, want := query(t, URL(t, "hub"), who), "hub "+name[1]+" true"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	t.Run("subtest", func(t *testing.T) {
		t.Parallel()
		if got, want := query(t, URL(t, "hub"), who), "hub "+name[1]+" true"; got != want {
			t.Errorf("%s, not %s", got, want)
		}
		Database(t)
		if got := strings.Fields(query(t, URL(t, "hub"), who)); got[1] == name[1] {
			t.Error("the subtest has a database of its own by now")
		}
	})
}

func TestEmptyDatabase(t *testing.T) {
	t.Parallel()
	url := Empty(t)
	if got := query(t, url, `SELECT current_user || (SELECT count(*) FROM pg_class WHERE relname = 'notes')`); got != "hub0" {
		t.Error(got)
	}
	if got := query(t, Database(t), `SELECT count(*)::text FROM pg_class WHERE relname = 'notes'`); got != "1" {
		t.Error(got)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"fsync": "off", "max_connections": "300", "autovacuum": "on", "listen_addresses": ""} {
		if got := query(t, Database(t), `SHOW `+name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
}

func TestDatabaseName(t *testing.T) {
	t.Parallel()
	for test, want := range map[string]string{
		"TestA/b c#01":           "t7_testa_b_c_01",
		strings.Repeat("x", 100): "t7_" + strings.Repeat("x", 60),
	} {
		if got := databaseName(7, test); got != want {
			t.Errorf("%s: %s", test, got)
		}
	}
}

// TestInAProcess is what the processes run that the tests below start; by itself it is just one more test.
func TestInAProcess(t *testing.T) {
	url := Database(t)
	fmt.Printf("\nurl %s\n", url)
	if os.Getenv(mode) == "hang" {
		time.Sleep(time.Hour)
	}
}

// process starts a test process of a kind and gives the data directory of its cluster, if it got that far.
func process(t *testing.T, kind string, env ...string) (cmd *exec.Cmd, output *strings.Builder, dir string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(self, "-test.run=^TestInAProcess$")
	cmd.Env = append(append(os.Environ(), mode+"="+kind), env...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	output = &strings.Builder{}
	lines := bufio.NewScanner(pipe)
	for lines.Scan() {
		fmt.Fprintln(output, lines.Text())
		if address, ok := strings.CutPrefix(lines.Text(), "url "); ok {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			dir = filepath.Dir(u.Query().Get("host"))
			if kind == "hang" {
				break
			}
		}
	}
	return cmd, output, dir
}

func TestProcessCleansUp(t *testing.T) {
	t.Parallel()
	cmd, output, dir := process(t, "")
	if err := cmd.Wait(); err != nil || dir == "" {
		t.Fatalf("%v %s", err, output)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is still there", dir)
	}
}

func TestProcessIsKilled(t *testing.T) {
	t.Parallel()
	killed, output, dir := process(t, "hang")
	first, err := os.ReadFile(filepath.Join(dir, "postgres/postmaster.pid"))
	if err != nil {
		t.Fatalf("%v %s", err, output)
	}
	line, _, _ := strings.Cut(string(first), "\n")
	server, _ := strconv.Atoi(line)
	if err := syscall.Kill(server, 0); err != nil {
		t.Fatalf("the server %d: %v", server, err)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()

	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", server))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the server has outlived its test process")
		}
	}

	// Its directory is left to the next process. (Any may come first: this one is not alone in the world.)
	for deadline := time.Now().Add(time.Minute); ; {
		if cmd, output, _ := process(t, ""); cmd.Wait() != nil {
			t.Fatal(output)
		}
		if _, err := os.Stat(dir); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is still there", dir)
		}
	}
}

func TestStaleDirectories(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	nobody := "4194304" // one more than the largest pid there can be
	for _, c := range []struct {
		name  string
		lock  bool
		age   time.Duration
		stale bool
	}{
		{dirPrefix + nobody + "-1", true, 0, true},
		{dirPrefix + strconv.Itoa(os.Getpid()) + "-1", true, 0, false},
		{dirPrefix + nobody + "-2", false, 0, false},
		{dirPrefix + nobody + "-3", false, 2 * time.Hour, true},
		{dirPrefix + "x", true, 2 * time.Hour, false},
	} {
		dir := filepath.Join(base, c.name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if c.lock {
			if err := os.WriteFile(filepath.Join(dir, "hub.lock"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		then := time.Now().Add(-c.age)
		if err := os.Chtimes(dir, then, then); err != nil {
			t.Fatal(err)
		}
		if got := isStale(dir); got != c.stale {
			t.Errorf("%+v: %v", c, got)
		}
	}

	held := filepath.Join(base, dirPrefix+nobody+"-1/hub.lock")
	lock, err := os.Open(held)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if isStale(filepath.Dir(held)) {
		t.Error("its server is still running")
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ kind, env, message string }{
		{"", "HUB_POSTGRES_BIN=/not/there", "Get one with `make postgres`"},
		{"no Main", "", "does not call pgtest.Main"},
		{"failing prepare", "", "no such migration"},
		{"no role", "", `the role "app" does not exist`},
	} {
		t.Run(c.message, func(t *testing.T) {
			t.Parallel()
			cmd, output, _ := process(t, c.kind, c.env)
			if cmd.Wait() == nil || !strings.Contains(output.String(), c.message) || !strings.Contains(output.String(), "--- FAIL") {
				t.Errorf("it said:\n%s", output)
			}
		})
	}
}

func BenchmarkDatabase(b *testing.B) {
	Database(b)
	for b.Loop() {
		Database(b)
	}
}
