package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/apikey"
	"github.com/alkdev/hub/internal/migrate"
	"github.com/alkdev/hub/internal/postgres"
	"github.com/alkdev/hub/internal/store"
	"github.com/alkdev/hub/internal/upkeep"
)

const (
	shutdownTimeout = 30 * time.Second
	restartPause    = 200 * time.Millisecond // between the end of hub's own PostgreSQL and its next start
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the hub",
		Long: `Run the hub until it is interrupted.

Without DATABASE_URL (or HUB_DATABASE_URL) hub runs a PostgreSQL server of its own, with its data in the data directory, on a
unix socket that only this user can reach. With it, hub uses that server; HUB_MIGRATE_URL names the schema owner's login where
the application's is another one, as it should be.

The first start applies the migrations, creates the first organisation and its admin, and writes the admin's key to
admin-key in the data directory.`,
		Args: cobra.NoArgs,
	}
	dataDir := dataDirFlag(cmd)
	listen := cmd.Flags().String("listen", fromEnv("127.0.0.1:8080", "HUB_LISTEN"), "address and port to listen on (HUB_LISTEN)")
	bin := cmd.Flags().String("postgres-bin", os.Getenv("HUB_POSTGRES_BIN"), "bin directory of the PostgreSQL to run (HUB_POSTGRES_BIN; default: found)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, moved, err := dataDir()
		if err != nil {
			return err
		}
		log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil))
		if moved {
			fmt.Fprintf(cmd.OutOrStdout(), "hub keeps its data in %s: PostgreSQL does not run as root, and its user cannot reach this directory.\n", dir)
		}
		return serve(cmd, log, dir, *listen, *bin)
	}
	return cmd
}

func serve(cmd *cobra.Command, log *slog.Logger, dir, listen, bin string) error {
	ctx := cmd.Context()
	config := api.Config{Log: log, Version: programVersion()}
	var errs [7]error
	config.MaxBody, errs[0] = numberFromEnv("HUB_MAX_BODY", 16<<20)
	config.MaxImport, errs[1] = numberFromEnv("HUB_MAX_IMPORT", 256<<20)
	config.RequestTimeout, errs[2] = durationFromEnv("HUB_REQUEST_TIMEOUT", 30*time.Second)
	config.ImportTimeout, errs[3] = durationFromEnv("HUB_IMPORT_TIMEOUT", 10*time.Minute)
	var connections, rateLimit int64
	connections, errs[4] = numberFromEnv("HUB_DATABASE_CONNECTIONS", 16)
	rateLimit, errs[5] = rateLimitFromEnv()
	var upkeepEvery time.Duration
	upkeepEvery, errs[6] = durationFromEnv("HUB_UPKEEP_INTERVAL", time.Minute)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	rotationRate, err := numberFromEnv("HUB_ROTATION_RATE", 500)
	if err != nil {
		return err
	}
	config.RotationRate = int(min(rotationRate, 1_000_000))
	if config.MetricsOpen, err = metricsFromEnv(); err != nil {
		return err
	}
	config.RateLimit = int(rateLimit)
	if connections > 1000 {
		return errors.New("HUB_DATABASE_CONNECTIONS: at most 1000")
	}
	// The port first: it is the likeliest thing to be wrong, and cheap to try.
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	defer listener.Close()

	appURL, ownerURL := databaseURLs()
	keys, err := findKeys(dir, appURL == "")
	if err != nil {
		return err
	}
	databaseEnded := make(chan error, 1)
	if appURL == "" {
		database, err := startOwnDatabase(ctx, log, postgres.Config{DataDir: dir, Bin: bin, Log: log, Holder: "hub serve on " + listen}, databaseEnded)
		if err != nil {
			return err
		}
		defer database.stop()
		appURL, ownerURL = database.url("hub_app"), database.url("hub")
	}
	if err := migrate.Up(ctx, ownerURL, log); err != nil {
		return err
	}
	if config.Keys, err = keys.load(); err != nil {
		return err
	}
	keyFile := filepath.Join(dir, "admin-key")
	if err := bootstrap(ctx, log, ownerURL, keyFile); err != nil {
		return err
	}
	config.Transfers = max(1, int(connections)/2) // the rest is for everybody else
	config.DB, err = store.Open(ctx, store.Config{URL: appURL, Log: log, Connections: int32(connections)})
	if err != nil {
		return err
	}
	defer config.DB.Close()
	stopping := make(chan struct{})
	config.Stopping = stopping
	handler, err := api.New(config)
	if err != nil {
		return err
	}
	if err := handler.Prepare(ctx); err != nil {
		return err
	}
	working, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	work.Go(func() { upkeep.Run(working, config.DB, log, upkeepEvery) })
	work.Go(func() { upkeep.Sequence(working, config.DB, log) })
	work.Go(func() { handler.Work(working) })
	defer func() { stopWork(); work.Wait() }() // before the connections close
	defer keys.reloadOnHangup(working, log, handler.SetKeys)()
	requests, cutOff := context.WithCancel(context.WithoutCancel(ctx))
	defer cutOff()
	server := &http.Server{Handler: handler, BaseContext: func(net.Listener) context.Context { return requests }, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	server.RegisterOnShutdown(func() { close(stopping) })
	serverEnded := make(chan error, 1)
	go func() { serverEnded <- server.Serve(listener) }()
	announce(cmd, "http://"+reachable(listener.Addr()), dir, keyFile)

	select {
	case err = <-serverEnded:
	case err = <-databaseEnded:
		err = fmt.Errorf("hub's own PostgreSQL: %w", err)
	case <-ctx.Done():
		log.Info("stopping: requests under way may finish", "timeout", shutdownTimeout.String())
	}
	patience, cancel := context.WithTimeout(requests, shutdownTimeout)
	defer cancel()
	if server.Shutdown(patience) != nil {
		log.Warn("stopping: requests that were still under way are cut off")
		cutOff()
		server.Close() //nolint:errcheck // it closes what is left
	}
	return err
}

func announce(cmd *cobra.Command, base, dir, keyFile string) {
	key := keyFile
	if _, err := os.Stat(keyFile); err != nil {
		key = "(not here: made on the first start, or taken away since)"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\nhub %s is ready.\n\n  API        %s/v1\n  Docs       %s/docs\n  Admin key  %s\n  Data       %s\n\n", programVersion(), base, base, key, dir)
}

// reachable is where a client on this machine finds a listener: one on all addresses is also on loopback.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	return fmt.Sprintf("127.0.0.1:%d", tcp.Port)
}

// Hub's own database -------------------------------------------------------------------------------------------------

type ownDatabase struct {
	server *postgres.Server // the first one; one that replaces it has the same addresses
	stop   func()
}

func (d ownDatabase) url(user string) string { return d.server.URL(user, "hub") }

// startOwnDatabase starts PostgreSQL, makes the database hub and the roles, and keeps it running: when the server is killed it
// is started again. If that fails, ended gets the error.
func startOwnDatabase(ctx context.Context, log *slog.Logger, cfg postgres.Config, ended chan<- error) (ownDatabase, error) {
	server, err := postgres.Start(ctx, cfg)
	if err != nil {
		return ownDatabase{}, err
	}
	ctx = context.WithoutCancel(ctx) // requests under way need the database until the server has stopped
	stopping, stopped := make(chan struct{}), make(chan struct{})
	database := ownDatabase{server: server, stop: func() { close(stopping); <-stopped }}
	go func() {
		defer close(stopped)
		for running := server; ; {
			select {
			case <-stopping:
				patience, cancel := context.WithTimeout(ctx, shutdownTimeout)
				defer cancel()
				if err := running.Stop(patience); err != nil {
					log.Error("stopping PostgreSQL", "cause", err)
				}
				return
			case <-running.Done():
				log.Error("PostgreSQL ended, and is started again", "cause", running.Err())
				time.Sleep(restartPause)
				if running, err = postgres.Start(ctx, cfg); err != nil {
					ended <- err
					<-stopping
					return
				}
			}
		}
	}()
	if err := prepareOwnDatabase(ctx, server); err != nil {
		database.stop()
		return ownDatabase{}, err
	}
	return database, nil
}

func prepareOwnDatabase(ctx context.Context, server *postgres.Server) error {
	conn, err := pgx.Connect(ctx, server.URL("hub", "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := migrate.EnsureRoles(ctx, conn, true); err != nil {
		return err
	}
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'hub')").Scan(&exists); err != nil || exists {
		return err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE hub")
	return err
}

// The first start ----------------------------------------------------------------------------------------------------

// bootstrap creates the first organisation, its admin and the admin's key where there is none. The key is in its file before
// the database knows it, so a start that is cut off between the two is completed by the next one.
func bootstrap(ctx context.Context, log *slog.Logger, url, keyFile string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var there, may bool
	err = conn.QueryRow(ctx, `SELECT hub_is_bootstrapped(), has_function_privilege('bootstrap_hub(text, text, text, bytea, text)', 'EXECUTE')`).Scan(&there, &may)
	if err != nil || there {
		return err
	}
	if !may {
		return errors.New("the database has no organisation yet, and this login may not create the first one: set HUB_MIGRATE_URL for the first start")
	}
	key, err := readOrMakeKey(keyFile)
	if err != nil {
		return err
	}
	hash, err := apikey.Hash(key)
	if err != nil {
		return fmt.Errorf("%s: %w", keyFile, err)
	}
	var org *uuid.UUID
	if err := conn.QueryRow(ctx, "SELECT org_id FROM bootstrap_hub('default', 'Default', 'admin', $1)", hash).Scan(&org); err != nil {
		return err
	}
	if org == nil {
		return nil // another replica was faster
	}
	log.Info("created the first organisation and its admin", "org", org.String(), "adminKey", keyFile)
	return nil
}

// readOrMakeKey returns the key in file, which only the owner may read; it makes one where there is no file.
func readOrMakeKey(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(text)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", err
	}
	key := apikey.New()
	part := file + ".new"
	if err := writeDurably(part, file, key+"\n"); err != nil {
		return "", err
	}
	return key, nil
}

// writeDurably writes a file that is whole or not there, also after the power failed: the database is as durable, and knows the
// key only afterwards.
func writeDurably(part, file, text string) error {
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = out.WriteString(text)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	if err := os.Rename(part, file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
