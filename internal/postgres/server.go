package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	superuser     = "hub"      // made by initdb
	firstDatabase = "postgres" // made by initdb

	readyPoll = 10 * time.Millisecond
	slowStart = 5 * time.Second // after so long a note goes to the log: recovery after a crash can take minutes
	quitGrace = 10 * time.Second
)

// Config says which server to start. DataDir is required, all else may be zero.
type Config struct {
	DataDir  string            // hub's --data-dir, absolute or relative; made if it is missing
	Bin      string            // hub's --postgres-bin: the hint for Find
	Holder   string            // what a second hub is told about this one: "hub serve on 127.0.0.1:8080"
	Log      *slog.Logger      // a few lines at start and end; nil is silence
	Settings map[string]string // postgresql.conf settings beyond hub's defaults, or against them
}

// Server is a running PostgreSQL server. Its methods may be called from any goroutine.
type Server struct {
	layout    layout
	socketDir string
	log       *slog.Logger
	lock      *dirLock
	process   *os.Process
	logFrom   int64 // size of the log file when the server started

	stopping atomic.Bool
	done     chan struct{}
	err      error // written before done is closed
}

// Start starts the server on cfg.DataDir, makes the cluster first if there is none, and returns when it answers: after a
// second or two from nothing, some 0.1 s otherwise, and longer only after a crash, when it has to recover. ctx bounds
// that wait, not the life of the server: the server runs until Stop, and gets a fast shutdown when this process dies.
//
// The cluster has one superuser, hub, and one database, postgres, both open without a password to who can enter the
// directory of its unix socket (mode 0700). It does not listen on TCP. As root it runs as the user postgres, or else
// nobody.
//
// Errors: *InUseError when another hub has the directory, at once; *VersionError when the cluster is of another major
// version; Find's error when there is no server to start. If the server ends while starting, the end of its log is in the
// error. Nothing is left running then.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{log: cfg.Log, done: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	settings, err := normalize(cfg.Settings)
	if err != nil {
		return nil, err
	}
	root, err := resolve(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	s.layout = layout{root}

	// Everything that can be refused is, before the first file is made.
	a, err := clusterAccount(s.layout.cluster())
	if err != nil {
		return nil, err
	}
	major, err := majorOf(s.layout.cluster())
	if err != nil {
		return nil, err
	}
	in, err := usualPlaces().find(ctx, cfg.Bin, major)
	if err != nil {
		return nil, err
	}
	if err := s.layout.mayServe(in, major); err != nil {
		return nil, err
	}

	if err := s.layout.open(a); err != nil {
		return nil, err
	}
	if s.lock, err = lockDir(ctx, s.layout, cfg.Holder); err != nil {
		return nil, err
	}
	begin := time.Now()
	if err := s.prepare(ctx, in, a, !isOff(settings["fsync"])); err != nil {
		s.lock.release(s.layout)
		return nil, err
	}
	if err := s.launch(in, a, settings); err != nil { // releases the lock when the server has ended, or did not start
		return nil, err
	}
	if err := s.waitUntilReady(ctx); err != nil {
		return nil, err
	}
	s.log.Info("PostgreSQL is ready", "version", in.Major, "data", s.layout.cluster(), "socket", s.socketDir,
		"pid", s.process.Pid, "user", a.name, "took", time.Since(begin).Round(time.Millisecond))
	return s, nil
}

// prepare sees to everything that the server needs. The lock is held, so nobody else does the same.
func (s *Server) prepare(ctx context.Context, in Install, a account, sync bool) error {
	// Looked at again: another hub may have made the cluster since.
	major, err := majorOf(s.layout.cluster())
	if err != nil {
		return err
	}
	if major == 0 {
		s.log.Info("making a new PostgreSQL cluster", "version", in.Major, "data", s.layout.cluster())
		if err := s.layout.initdb(ctx, in, a, s.lock, sync); err != nil {
			return err
		}
	}
	if err := s.layout.mayServe(in, major); err != nil {
		return err
	}
	if err := s.layout.clearStalePID(); err != nil {
		return err
	}
	s.socketDir, err = s.layout.socketDir(a)
	return err
}

// launch starts postgres itself rather than pg_ctl, which would leave it to init and would not tell when it ends.
func (s *Server) launch(in Install, a account, settings map[string]string) error {
	logFile, err := s.layout.openLog()
	if err != nil {
		s.lock.release(s.layout)
		return err
	}
	defer logFile.Close() // the server has its own
	if info, err := logFile.Stat(); err == nil {
		s.logFrom = info.Size()
	}

	// Not Start's context: the server outlives it.
	cmd := exec.CommandContext(context.Background(), filepath.Join(in.BinDir, "postgres"), arguments(s.layout, s.socketDir, settings)...)
	cmd.Env = in.environment()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{s.lock.file} // see dirLock
	cmd.SysProcAttr = a.attributes()

	started := make(chan error)
	go func() {
		// See account.attributes. Never unlocked: the thread ends with this goroutine, and the server has ended then.
		runtime.LockOSThread()
		err := cmd.Start()
		s.process = cmd.Process
		if err != nil {
			s.lock.release(s.layout)
			started <- fmt.Errorf("PostgreSQL did not start: %w", err)
			return
		}
		started <- nil
		s.ended(cmd.Wait())
	}()
	return <-started
}

// ended notes that the server is gone, for whatever reason, and gives the data directory up.
func (s *Server) ended(wait error) {
	switch {
	case wait != nil:
		s.err = fmt.Errorf("PostgreSQL has ended (%w); the end of %s:\n%s", wait, s.layout.log(), indent(s.layout.logTail(s.logFrom)))
	case !s.stopping.Load():
		s.err = errors.New("PostgreSQL was shut down by somebody else than hub")
	}
	if s.socketDir != s.layout.run() {
		_ = os.Remove(s.socketDir) // among other people's temporary files; stays if the server left something there
	}
	s.lock.release(s.layout)
	close(s.done)
	s.log.Info("PostgreSQL has stopped", "data", s.layout.cluster(), "clean", s.err == nil)
}

// waitUntilReady returns when a connection succeeds. If it fails the server is gone.
func (s *Server) waitUntilReady(ctx context.Context) error {
	slow := time.After(slowStart)
	for {
		conn, err := pgconn.Connect(ctx, s.URL(superuser, firstDatabase))
		if err == nil {
			_ = conn.Close(ctx)
			return nil
		}
		if refusal := (*pgconn.PgError)(nil); errors.As(err, &refusal) && refusal.Code != "57P03" { // cannot_connect_now
			s.giveUp()
			return fmt.Errorf("PostgreSQL refuses its own superuser: %w", err)
		}
		select {
		case <-time.After(readyPoll):
		case <-slow:
			s.log.Info("PostgreSQL is still starting: it may be recovering after a crash", "log", s.layout.log())
		case <-s.done:
			return fmt.Errorf("PostgreSQL did not start: %w", s.err)
		case <-ctx.Done():
			s.giveUp()
			return fmt.Errorf("PostgreSQL was not ready in time: %w; the end of %s:\n%s",
				context.Cause(ctx), s.layout.log(), indent(s.layout.logTail(s.logFrom)))
		}
	}
}

// giveUp stops a server that nobody has got to see.
func (s *Server) giveUp() {
	ctx, cancel := context.WithTimeout(context.Background(), quitGrace)
	defer cancel()
	_ = s.Stop(ctx)
}

// URL is the connection string for a role and a database, for pgx and for libpq's programs alike.
func (s *Server) URL(user, database string) string { return socketURL(s.socketDir, user, database) }

// RunningURL is the connection string for the server that somebody else runs on a data directory: for what must be possible
// while a hub serves. It has an error where none seems to run.
func RunningURL(dataDir, user, database string) (string, error) {
	root, err := resolve(dataDir)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(layout{root}.cluster(), "postmaster.pid"))
	if err != nil {
		return "", err
	}
	lines := strings.Split(string(text), "\n") // the fifth is the socket's directory
	if len(lines) < 5 || lines[4] == "" {
		return "", fmt.Errorf("the server on %s is not ready", root)
	}
	return socketURL(lines[4], user, database), nil
}

func socketURL(socketDir, user, database string) string {
	// All that could come from PG* variables otherwise is said.
	query := url.Values{"host": {socketDir}, "port": {port}, "sslmode": {"disable"}}
	u := url.URL{
		Scheme: "postgres", User: url.User(user), Path: "/" + database,
		RawQuery: strings.ReplaceAll(query.Encode(), "+", "%20"), // a plus is a plus in these URLs, and never a space
	}
	return u.String()
}

// PID is the process id of the server's first process.
func (s *Server) PID() int { return s.process.Pid }

// LogFile is where the server's own log is.
func (s *Server) LogFile() string { return s.layout.log() }

// Done is closed when the server has ended, for whatever reason.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err is why the server has ended: nil as long as it runs and after an orderly Stop.
func (s *Server) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Stop shuts the server down and returns when it is gone: connections are cut, their transactions rolled back, everything
// is written out. When ctx ends before that is done, the server drops everything and recovers at its next start; the error
// says so. Nothing acknowledged is lost either way. Stopping a server that has ended already is no error.
func (s *Server) Stop(ctx context.Context) error {
	s.stopping.Store(true)
	_ = s.process.Signal(syscall.SIGINT) // fails only if it has ended
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
	}
	_ = s.process.Signal(syscall.SIGQUIT) // ends its children itself, with SIGKILL after five seconds
	select {
	case <-s.done:
	case <-time.After(quitGrace):
		_ = s.process.Kill()
		<-s.done
	}
	return fmt.Errorf("PostgreSQL did not stop in time and was cut off; it will recover at its next start: %w", context.Cause(ctx))
}
