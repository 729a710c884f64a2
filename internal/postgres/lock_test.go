package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestSecondStartIsRefused(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	first := start(t, Config{DataDir: dir, Holder: "hub serve on 127.0.0.1:8080"})

	_, err := tryStart(t, Config{DataDir: dir, Holder: "another"})
	wantInUse(t, err, os.Getpid(), "hub serve on 127.0.0.1:8080")
	wantText(t, err, dir, fmt.Sprintf("in use by hub serve on 127.0.0.1:8080, pid %d, since 2", os.Getpid()))

	link := filepath.Join(tempDir(t), "link") // another name for the same directory
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	_, err = tryStart(t, Config{DataDir: link})
	wantInUse(t, err, os.Getpid(), "hub serve on 127.0.0.1:8080")

	query(t, first, putData) // it has not been disturbed
	stop(t, first)
	wantData(t, start(t, Config{DataDir: link}))
}

func TestSecondHubIsRefused(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	helper, ready := startHelper(t, dir)
	if pid := <-ready; pid == 0 {
		t.Fatal("the helper did not start the server")
	}
	_, err := tryStart(t, Config{DataDir: dir})
	wantInUse(t, err, helper.Process.Pid, "the test's helper")

	start(t, Config{DataDir: newDataDir(t)}) // another directory is another matter
}

func wantInUse(t *testing.T, err error, pid int, holder string) {
	t.Helper()
	var inUse *InUseError
	if !errors.As(err, &inUse) {
		t.Fatalf("the error is %v", err)
	}
	if inUse.PID != pid || inUse.Holder != holder || inUse.Since.IsZero() || inUse.Gone {
		t.Errorf("%+v", inUse)
	}
}

// Hub has been killed, and its server is not through with its shutdown: the lock is still held by that.
func TestServerOfADeadHub(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	hub, ready := startHelper(t, dir)
	if pid := <-ready; pid == 0 {
		t.Fatal("the helper did not start the server")
	}
	// The checkpointer takes its time. (Stopping the postmaster does not work: it is in an orphaned process group when hub
	// is dead, and the kernel makes such ones continue.)
	ofHelper := &Server{socketDir: layout{dir}.run()}
	checkpointer, _ := strconv.Atoi(query(t, ofHelper, `SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`))
	if err := syscall.Kill(checkpointer, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := func() { _ = syscall.Kill(checkpointer, syscall.SIGCONT) }
	defer goOn()
	if err := hub.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the helper is dead", func() bool { return !readHolder(layout{dir}).alive() })

	noTime, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := lockDir(noTime, layout{dir}, "another")
	wantText(t, err, "the test's helper", "has died", "still shutting down")
	if inUse := (*InUseError)(nil); !errors.As(err, &inUse) || !inUse.Gone || inUse.PID != hub.Process.Pid {
		t.Errorf("%+v", inUse)
	}

	time.AfterFunc(5*lockPoll, goOn)
	start(t, Config{DataDir: dir}) // waits for it
}

func TestServerStartedByHand(t *testing.T) {
	t.Parallel()
	dir := newDataDir(t)
	stop(t, start(t, Config{DataDir: dir}))

	l := layout{dir}
	a, err := clusterAccount(l.cluster())
	if err != nil {
		t.Fatal(err)
	}
	in, err := Find(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(in.BinDir, "postgres"), arguments(l, l.run(), fast)...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = in.environment(), "/", a.attributes()
	cmd.SysProcAttr.Pdeathsig = 0
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
		start(t, Config{DataDir: dir})
	}()
	byHand := &Server{socketDir: l.run()}
	eventually(t, "the server by hand is ready", func() bool {
		conn, err := pgx.Connect(t.Context(), byHand.URL("hub", "postgres"))
		if err == nil {
			conn.Close(t.Context())
		}
		return err == nil
	})

	_, err = tryStart(t, Config{DataDir: dir})
	wantText(t, err, "a PostgreSQL server that hub did not start", fmt.Sprintf("pid %d", cmd.Process.Pid))
}
