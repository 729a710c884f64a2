package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestPostgresIsKilled(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	first := start(t, Config{DataDir: dir})
	query(t, first, putData)

	if err := syscall.Kill(first.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, first)
	wantText(t, first.Err(), "signal: killed", "postgres.log")

	wantData(t, start(t, Config{DataDir: dir})) // at once: the old backends may be there still
}

// A backend that computes does not notice that its postmaster is gone, and would keep the shared memory in use for hours.
func TestPostgresIsKilledWhileABackendComputes(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	first := start(t, Config{DataDir: dir})
	query(t, first, putData)
	backend := compute(t, first)

	if err := syscall.Kill(first.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, first)
	if p, err := readProcess(backend); err != nil || p.zombie {
		t.Fatalf("the backend should not have noticed yet: %+v %v", p, err)
	}

	wantData(t, start(t, Config{DataDir: dir}))
}

// compute starts an endless query and returns the pid of its backend.
func compute(t *testing.T, server *Server) int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL("hub", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	queryEnded := make(chan struct{})
	go func() {
		defer close(queryEnded)
		_, _ = conn.Exec(context.Background(), `DO $$ DECLARE n int := 0; BEGIN LOOP n := (n + 1) % 1000; END LOOP; END $$`)
	}()
	pid := int(conn.PgConn().PID())
	backend, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = backend.Kill() // long gone if the test passes
		<-queryEnded
	})
	eventually(t, "the query computes", func() bool {
		return query(t, server, fmt.Sprintf(`SELECT state || coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = %d`, pid)) == "active"
	})
	return pid
}

func TestHubIsKilled(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	stop(t, func() *Server { s := start(t, Config{DataDir: dir}); query(t, s, putData); return s }())

	hub, ready := startHelper(t, dir)
	if pid := <-ready; pid == 0 {
		t.Fatal("the helper did not start the server")
	}
	if err := hub.Process.Kill(); err != nil {
		t.Fatal(err)
	}

	wantData(t, start(t, Config{DataDir: dir})) // at once: the old server may be there still
}

func TestServerEndsWithHub(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	hub, ready := startHelper(t, dir)
	pid := <-ready
	if p, err := readProcess(pid); err != nil || p.name != "postgres" {
		t.Fatalf("the server of the helper, %d: %+v %v", pid, p, err)
	}
	if err := hub.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server ends", func() bool {
		p, err := readProcess(pid)
		return err != nil || p.zombie
	})
	eventually(t, "it does so cleanly", func() bool { return postmasterPID(filepath.Join(dir, "postgres")) == 0 })
}

func TestStalePostmasterPID(t *testing.T) {
	t.Parallel()
	for name, program := range map[string]string{"a zombie has the number": "true", "a stranger has the number": "sleep"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := newDataDir(t)
			first := start(t, Config{DataDir: dir})
			query(t, first, putData)
			pidFile := filepath.Join(dir, "postgres/postmaster.pid")
			lines, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			stop(t, first)

			// As the server's user: PostgreSQL disregards the processes of others by itself.
			a, err := clusterAccount(filepath.Join(dir, "postgres"))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program, "600")
			cmd.SysProcAttr = a.attributes()
			cmd.SysProcAttr.Pdeathsig = 0
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
			if program == "true" {
				eventually(t, "a zombie", func() bool { p, err := readProcess(cmd.Process.Pid); return err == nil && p.zombie })
			}
			_, rest, _ := strings.Cut(string(lines), "\n")
			if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n%s", cmd.Process.Pid, rest), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := a.own(pidFile); err != nil {
				t.Fatal(err)
			}

			wantData(t, start(t, Config{DataDir: dir}))
		})
	}
}
