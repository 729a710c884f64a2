// Package api is the HTTP server: the contract's operations on the database.
//
// A request goes: route, contract (contract.go: is it well formed, who asks, which scopes), the generated strict wrapper, the
// operation's method in <domain>.go, sqlc's query. Whatever goes wrong on the way becomes a problem in problem.go.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/labstack/echo/v4"
	"github.com/swaggest/swgui"
	swagger "github.com/swaggest/swgui/v5emb"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/keyring"
	"github.com/alkdev/hub/internal/schemas"
	"github.com/alkdev/hub/internal/store"
)

// Config is what a Server needs. Zero limits and times stand for the defaults.
type Config struct {
	DB      *store.DB
	Log     *slog.Logger
	Version string // the program's

	MaxBody        int64         // bytes of a request body; 16 MiB
	MaxImport      int64         // bytes of an import; 256 MiB
	RequestTimeout time.Duration // for one request; 30 s
	ImportTimeout  time.Duration // for an import or export; 10 min
	Transfers      int           // imports and exports that use the database at once; 8
	RateLimit      int           // requests per minute and key, on this server; 60000; below zero: no limit
	TempDir        string        // where imports are spooled; the system's

	Keys         *keyring.Ring   // what secrets are encrypted with; nil where there is none
	RotationRate int             // secrets that a rotation encrypts anew in a second, here; 500
	MetricsOpen  bool            // /metrics is for requests from everywhere
	Stopping     <-chan struct{} // closed when the server stops: who waits for something gets an answer, and event streams end
	Heartbeat    time.Duration   // of event streams; 15 s
	SlowReader   time.Duration   // how long the reader of an event stream may take for what it was sent; 20 s
}

// Server implements the contract's operations.
type Server struct {
	Config
	contractVersion string
	partTypes       partTypes
	feeds           feeds
	transfers       chan struct{} // holds one element per import or export that is using the database
	limits          *limits
	store           *store.DB
	db              *db.Queries // runs each query as the caller of its context, in one round trip
	echo            *echo.Echo
	keys            atomic.Pointer[keyring.Ring]
	orgs            *lru.Cache[[32]byte, uuid.UUID] // to which organisation a key belongs, by its hash
	metrics         *metrics
	rotate          chan struct{} // wakes the sweep
	waiters         waiters
	schemas         *lru.Cache[schemaKey, *schemas.Schema] // of operations called lately
}

// New returns the handler for all routes. Prepare comes before its first request.
func New(cfg Config) (*Server, error) {
	cfg.MaxBody = defaultTo(cfg.MaxBody, 16<<20)
	cfg.MaxImport = defaultTo(cfg.MaxImport, 256<<20)
	cfg.Transfers = defaultTo(cfg.Transfers, 8)
	cfg.RateLimit = defaultTo(cfg.RateLimit, 60_000)
	cfg.RequestTimeout = defaultTo(cfg.RequestTimeout, 30*time.Second)
	cfg.ImportTimeout = defaultTo(cfg.ImportTimeout, 10*time.Minute)
	cfg.Heartbeat = defaultTo(cfg.Heartbeat, 15*time.Second)
	cfg.SlowReader = defaultTo(cfg.SlowReader, 20*time.Second)
	cfg.RotationRate = defaultTo(cfg.RotationRate, 500)
	s := &Server{
		Config: cfg, store: cfg.DB, db: db.New(cfg.DB), transfers: make(chan struct{}, cfg.Transfers), limits: newLimits(cfg.RateLimit),
		metrics: newMetrics(), rotate: make(chan struct{}, 1),
	}
	s.keys.Store(cfg.Keys)

	var err error
	if s.orgs, err = lru.New[[32]byte, uuid.UUID](rememberedKeys); err != nil {
		return nil, err
	}
	if s.schemas, err = lru.New[schemaKey, *schemas.Schema](1000); err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(api.Contract)
	if err != nil {
		return nil, fmt.Errorf("the contract: %w", err)
	}
	s.contractVersion, s.partTypes = doc.Info.Version, partTypesOf(doc)
	e := echo.New()
	e.HideBanner = true
	e.HidePort = true
	e.Binder = binder{}
	e.HTTPErrorHandler = s.writeProblem
	e.Use(s.identifyAndLog, s.recoverPanic, s.conform(operationsOf(doc)))
	api.RegisterHandlers(e, api.NewStrictHandler(s, []api.StrictMiddlewareFunc{retry}))
	e.GET("/openapi.json", func(c echo.Context) error {
		return c.Blob(http.StatusOK, echo.MIMEApplicationJSON, api.Contract)
	})
	docs := swagger.NewWithConfig(swgui.Config{HideCurl: false, SettingsUI: map[string]string{"persistAuthorization": "true"}})("hub", "/openapi.json", "/docs/")
	e.GET("/docs", func(c echo.Context) error { return c.Redirect(http.StatusMovedPermanently, "/docs/") })
	e.GET("/docs/*", echo.WrapHandler(docs))
	s.echo = e
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.echo.ServeHTTP(w, r) }

func defaultTo[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// What surrounds every request --------------------------------------------------------------------------------------

// identifyAndLog gives the request an id, the caller's where it is a harmless one, and writes the access log: no headers, no
// query, no bodies, so no secrets.
func (s *Server) identifyAndLog(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := time.Now()
		id := c.Request().Header.Get(echo.HeaderXRequestID)
		if !isHarmlessID(id) {
			id = uuid.Must(uuid.NewV7()).String()
		}
		c.Response().Header().Set(echo.HeaderXRequestID, id)
		c.Response().Header().Set("X-Content-Type-Options", "nosniff")

		err := next(c)
		if err != nil {
			c.Error(err)
		}
		attrs := []slog.Attr{
			slog.String("requestId", id),
			slog.String("method", c.Request().Method),
			slog.String("path", c.Request().URL.Path),
			slog.Int("status", c.Response().Status),
			slog.Int64("bytes", c.Response().Size),
			slog.Duration("took", time.Since(start)),
		}
		if caller := store.CallerFrom(c.Request().Context()); caller != nil && caller.KeyID != uuid.Nil {
			attrs = append(attrs, slog.String("org", caller.OrgID.String()), slog.String("account", caller.AccountID.String()), slog.String("key", caller.KeyID.String()))
		}
		s.Log.LogAttrs(c.Request().Context(), slog.LevelInfo, "request", attrs...)
		return nil
	}
}

func isHarmlessID(id string) bool {
	for _, r := range id {
		if (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '-' && r != '_' && r != '.' {
			return false
		}
	}
	return id != "" && len(id) <= 100
}

// recoverPanic turns a panic into a 500, but for the one that net/http uses to cut a connection.
func (s *Server) recoverPanic(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if r := recover(); r != nil {
				if r == http.ErrAbortHandler { //nolint:errorlint // a sentinel, compared as net/http does
					panic(r)
				}
				err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		return next(c)
	}
}

// retry runs an operation again when the database gave it up for a deadlock or a serialization failure: an operation is its
// request and its transaction, so nothing of the first attempt is left. A streamed body cannot be read twice; imports
// repeat their transaction themselves, and a request with an Idempotency-Key is repeated with its transaction.
func retry(next api.StrictHandlerFunc, operationID string) api.StrictHandlerFunc {
	return func(c echo.Context, request any) (response any, err error) {
		if streamsBody(c) || store.InTx(c.Request().Context()) {
			return next(c, request)
		}
		err = retrying(func() error {
			response, err = next(c, request)
			return err
		})
		return response, err
	}
}

func retrying(fn func() error) error {
	var err error
	for attempt := range 4 {
		if attempt > 0 {
			time.Sleep(time.Duration(attempt) * 10 * time.Millisecond)
		}
		if err = fn(); err == nil || !store.Retryable(err) {
			return err
		}
	}
	return err
}

// binder decodes bodies that the contract has checked. Echo's own knows no application/merge-patch+json, and path and query
// parameters have been bound by the generated wrapper.
type binder struct{}

func (binder) Bind(target any, c echo.Context) error {
	if streamsBody(c) {
		return nil // the operation reads it itself: requestBody(ctx)
	}
	err := json.NewDecoder(c.Request().Body).Decode(target)
	if number := new(json.UnmarshalTypeError); errors.As(err, &number) { // for JSON 1.0 and 1e2 are whole numbers
		return refuse("invalid_request", api.FieldError{Pointer: "/" + strings.ReplaceAll(number.Field, ".", "/"), Message: "must be written as a whole number"})
	}
	return err
}

type bodyKey struct{}

// requestBody is the unread body of an operation that the contract marks x-body: stream.
func requestBody(ctx context.Context) *http.Request {
	r, _ := ctx.Value(bodyKey{}).(*http.Request)
	return r
}
