package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/internal/postgres"
)

const (
	superuser = "hub"
	template  = "hub_template"

	// startTimeout is for the server and prepare together, createTimeout for one database and those in the queue before it:
	// generous, since a machine that tests is a busy one, but shorter than go test's own limit, which says much less.
	startTimeout  = 3 * time.Minute
	createTimeout = 2 * time.Minute
)

// settings trade safety for speed: after a crash the data would be lost, and is not needed.
var settings = map[string]string{
	"fsync":              "off",
	"synchronous_commit": "off",
	"full_page_writes":   "off",
	"wal_init_zero":      "off",
	"max_connections":    "300",
	"autovacuum":         "on", // as in production, though it costs something: it is part of what is tested
}

// cluster is the throw-away server of this process.
type cluster struct {
	prepare func(ctx context.Context, adminURL string) error
	role    string // never empty after start

	once   sync.Once
	err    error // why start failed
	dir    string
	server *postgres.Server

	mu    sync.Mutex // one database is made at a time: a template that is being copied is refused to others
	admin *pgx.Conn  // to none of the templates
	made  int
}

func (c *cluster) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if c.role == "" {
		c.role = superuser
	}
	var err error
	if c.dir, err = makeDir(); err != nil {
		return err
	}
	c.server, err = postgres.Start(ctx, postgres.Config{
		DataDir:  c.dir,
		Bin:      os.Getenv("HUB_POSTGRES_BIN"),
		Holder:   "the tests of " + os.Args[0],
		Settings: settings,
	})
	if err != nil {
		return err
	}
	if c.admin, err = pgx.Connect(ctx, c.server.URL(superuser, "postgres")); err != nil {
		return err
	}
	return c.makeTemplate(ctx)
}

func (c *cluster) makeTemplate(ctx context.Context) error {
	if err := c.exec(ctx, `CREATE DATABASE `+template+` TEMPLATE template0`); err != nil {
		return err
	}
	if c.prepare != nil {
		if err := c.prepare(ctx, c.server.URL(superuser, template)); err != nil {
			return fmt.Errorf("preparing the template database: %w", err)
		}
	}
	// A database that somebody is connected to cannot be copied, and prepare may have left a pool open.
	err := c.exec(ctx,
		`ALTER DATABASE `+template+` ALLOW_CONNECTIONS false`,
		`SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '`+template+`'`)
	if err != nil {
		return err
	}
	var there bool
	if err := c.admin.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, c.role).Scan(&there); err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("the role %q does not exist, although the template has been prepared: see pgtest.Main", c.role)
	}
	return nil
}

// create makes a database by copying one that nobody is connected to.
//
// The strategy is to copy files, which beats the default of going through the WAL by far where fsync is off.
func (c *cluster) create(test, from string) (name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Not the test's own context: a query that is cut off takes the connection with it.
	ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
	defer cancel()
	c.made++
	name = databaseName(c.made, test)
	err = c.exec(ctx, `CREATE DATABASE `+pgx.Identifier{name}.Sanitize()+` TEMPLATE `+from+` STRATEGY file_copy`)
	if err == nil {
		return name, nil
	}
	select {
	case <-c.server.Done():
		err = errors.Join(err, c.server.Err())
	default:
	}
	return "", fmt.Errorf("pgtest: creating a database: %w", err)
}

func (c *cluster) exec(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		if _, err := c.admin.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// databaseName tells in the server's log and in pg_stat_activity which test a database belongs to: "t12_testclaim". At most
// 63 bytes, as any name in PostgreSQL.
func databaseName(n int, test string) string {
	name := fmt.Sprintf("t%d_%s", n, notInNames.ReplaceAllString(strings.ToLower(test), "_"))
	return name[:min(len(name), 63)]
}

func (c *cluster) close() {
	if c.server != nil {
		// At once: nothing of it is needed any more.
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = c.server.Stop(ended)
	}
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}
