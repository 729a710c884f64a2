package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestDataSurvivesAStop(t *testing.T) {
	t.Parallel()
	dir := emptyDataDir(t)

	first := start(t, Config{DataDir: dir})
	query(t, first, putData)
	if err := first.Err(); err != nil {
		t.Errorf("a running server has the error %v", err)
	}
	stop(t, first)
	waitDone(t, first)
	if err := first.Err(); err != nil {
		t.Errorf("a stopped server has the error %v", err)
	}
	stop(t, first) // no error either
	if _, err := os.Stat(filepath.Join(dir, "postgres/postmaster.pid")); err == nil {
		t.Error("the shutdown was not clean: postmaster.pid is still there")
	}

	wantData(t, start(t, Config{DataDir: dir}))
}

func TestStopCutsConnections(t *testing.T) {
	t.Parallel()
	server := start(t, Config{DataDir: newDataDir(t)})
	conn, err := pgx.Connect(t.Context(), server.URL("hub", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	stop(t, server) // a "smart" shutdown would wait for the connection
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the connection still works")
	}
}

func TestStopInAHurry(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	server := start(t, Config{DataDir: dir})
	query(t, server, putData)

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := server.Stop(ended); err != nil { // it may have been quick enough
		wantText(t, err, "recover at its next start")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	}
	waitDone(t, server)

	wantData(t, start(t, Config{DataDir: dir}))
}

func TestShutDownBySomebodyElse(t *testing.T) {
	t.Parallel()
	server := start(t, Config{DataDir: newDataDir(t)})
	if err := server.process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	waitDone(t, server)
	wantText(t, server.Err(), "somebody else")
}

func TestContextEndsDuringStart(t *testing.T) {
	t.Parallel()
	dir := emptyDataDir(t)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Start(ended, Config{DataDir: dir, Settings: fast}); !errors.Is(err, context.Canceled) {
		t.Errorf("the error is %v", err)
	}

	start(t, Config{DataDir: dir}) // nothing is in the way
}

func TestFailingStartShowsTheLog(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	_, err := tryStart(t, Config{DataDir: dir, Settings: map[string]string{"fsync": "off", "shared_buffers": "many"}})
	wantText(t, err, "did not start", filepath.Join(dir, "postgres.log"), `FATAL:  invalid value for parameter "shared_buffers": "many"`)

	start(t, Config{DataDir: dir})
}

func TestCluster(t *testing.T) {
	t.Parallel()
	server := start(t, Config{DataDir: emptyDataDir(t), Settings: map[string]string{"fsync": "off", "Work-Mem": "5MB"}})
	for sql, want := range map[string]string{
		`SELECT current_user`:                     "hub",
		`SHOW server_encoding`:                    "UTF8",
		`SHOW data_checksums`:                     "on",
		`SHOW synchronous_commit`:                 "on",
		`SHOW wal_compression`:                    onOrPGLZ(t, server),
		`SHOW max_connections`:                    "100",
		`SHOW shared_buffers`:                     "128MB",
		`SHOW work_mem`:                           "5MB",
		`SHOW listen_addresses`:                   "",
		`SHOW timezone`:                           "GMT",
		`SELECT now() AT TIME ZONE 'UTC' = now()`: "t",
		`SELECT string_agg(datname, ' ') FROM pg_database WHERE NOT datistemplate`: "postgres",
		`SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolcanlogin`:          "hub",
		sortedLetters:       "BZaäé", // by code point
		`SELECT upper('ä')`: "Ä",
		`SELECT count(*) FROM pg_hba_file_rules WHERE type <> 'local' AND auth_method <> 'reject'`: "0",
	} {
		if got := query(t, server, sql); got != want {
			t.Errorf("%s: %q, not %q", sql, got, want)
		}
	}
}

const sortedLetters = `SELECT string_agg(c, '' ORDER BY c) FROM unnest('{ä,Z,a,B,é}'::text[]) AS t(c)`

// onOrPGLZ: PostgreSQL 15 shows wal_compression = on as pglz.
func onOrPGLZ(t *testing.T, server *Server) string {
	if got := query(t, server, `SHOW wal_compression`); got == "pglz" {
		return got
	}
	return "on"
}

func TestSettingsThatAreNotForOthers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"listen_addresses", "Listen-Addresses", "PORT", "data_directory", "hba_file", "unix_socket_directories", "", "a=b"} {
		dir := emptyDataDir(t)
		_, err := Start(t.Context(), Config{DataDir: dir, Settings: map[string]string{name: "x"}})
		wantText(t, err, fmt.Sprintf("%q", name), "hub's own to choose")
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the data directory was made all the same", name)
		}
	}
}

func TestNobodyElseGetsIn(t *testing.T) {
	t.Parallel()
	dir := emptyDataDir(t)
	key := filepath.Join(dir, "admin-key") // written by others, before or after the first start
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := start(t, Config{DataDir: dir})

	for _, name := range []string{"postgres", "run"} {
		wantMode(t, filepath.Join(dir, name), 0o700)
	}
	for _, name := range []string{"admin-key", "hub.lock", "postgres.log"} {
		wantMode(t, filepath.Join(dir, name), 0o600)
		if uid := uidOf(t, filepath.Join(dir, name)); uid != os.Geteuid() {
			t.Errorf("%s belongs to %d", name, uid)
		}
	}
	if uid := uidOf(t, dir); uid != os.Geteuid() {
		t.Errorf("the data directory belongs to %d", uid)
	}
	socket, err := os.Stat(filepath.Join(dir, "run", socketName))
	if err != nil || socket.Mode().Type() != os.ModeSocket || socket.Mode().Perm() != 0o700 {
		t.Errorf("socket: %v %v", socket.Mode(), err)
	}

	serverUID := uidOf(t, fmt.Sprintf("/proc/%d", server.PID()))
	if isRoot() {
		wantMode(t, dir, 0o710)
		if serverUID == 0 {
			t.Error("the server runs as root")
		}
	} else {
		wantMode(t, dir, 0o700)
		if serverUID != os.Geteuid() {
			t.Errorf("the server runs as %d", serverUID)
		}
	}
	for _, name := range []string{"postgres", "run"} {
		if uid := uidOf(t, filepath.Join(dir, name)); uid != serverUID {
			t.Errorf("%s belongs to %d, and the server runs as %d", name, uid, serverUID)
		}
	}

	if listening := tcpListeners(t, server.PID()); len(listening) > 0 {
		t.Errorf("the server listens on TCP: %v", listening)
	}
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", server.PID()))
	if err != nil || strings.Contains(string(environment), "HOME=") {
		t.Errorf("the server has hub's environment: %q %v", environment, err)
	}
}

// tcpListeners are the lines of /proc/PID/net/tcp and tcp6 for listening sockets that the process has open.
func tcpListeners(t *testing.T, pid int) (lines []string) {
	t.Helper()
	mine := map[string]bool{}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("the open files of %d: %v %v", pid, files, err)
	}
	sockets := 0
	for _, file := range files {
		if link, err := os.Readlink(file); err == nil && strings.HasPrefix(link, "socket:[") {
			mine[strings.Trim(link, "socket:[]")] = true
			sockets++
		}
	}
	if sockets == 0 {
		t.Fatal("not even the unix socket was found")
	}
	for _, table := range []string{"tcp", "tcp6"} {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		for _, line := range strings.Split(string(text), "\n")[1:] {
			if f := strings.Fields(line); len(f) > 9 && f[3] == "0A" && mine[f[9]] {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func TestURL(t *testing.T) {
	t.Parallel()
	s := &Server{socketDir: "/some where/a&b"}
	config, err := pgx.ParseConfig(s.URL("a role", "data base"))
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != s.socketDir || config.Port != 5432 || config.User != "a role" || config.Database != "data base" ||
		config.TLSConfig != nil || len(config.Fallbacks) > 0 {
		t.Errorf("%+v", config)
	}
}
