package api

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/labstack/echo/v4"
	"golang.org/x/time/rate"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/store"
)

// limits hold a bucket of requests per key. Only keys that were found to be in force have one, so that strangers can neither fill
// the memory nor learn from a 429 that a key is known; a key that is refused loses it. A bucket lives on one server: behind a
// balancer the limit is per server.
type limits struct {
	perMinute int // below zero: no limit
	buckets   *lru.Cache[[32]byte, *rate.Limiter]
}

const (
	limitedKeys = 100_000 // the keys in use lately that are remembered
	window      = 60      // seconds
)

func newLimits(perMinute int) *limits {
	buckets, err := lru.New[[32]byte, *rate.Limiter](limitedKeys)
	if err != nil {
		panic(err) // of a size below one
	}
	return &limits{perMinute: perMinute, buckets: buckets}
}

// limit counts a request against its key's bucket, before the database is asked, and tells the client how much is left
// (draft-ietf-httpapi-ratelimit-headers).
func (s *Server) limit(ctx context.Context, c echo.Context, caller *store.Caller) error {
	l := s.limits
	if l.perMinute < 0 {
		return nil
	}
	bucket, known := l.buckets.Get([32]byte(caller.KeyHash))
	allowed, left := true, float64(l.perMinute-1)
	if known {
		allowed = bucket.Allow()
		left = max(0, bucket.Tokens())
	}
	perSecond := float64(l.perMinute) / window
	header := c.Response().Header()
	header.Set("RateLimit-Policy", fmt.Sprintf(`"key";q=%d;w=%d`, l.perMinute, window))
	header.Set("RateLimit", fmt.Sprintf(`"key";r=%d;t=%d`, int(left), int(math.Ceil((float64(l.perMinute)-left)/perSecond))))
	if !allowed {
		if err := s.store.Authenticate(store.WithCaller(ctx, caller)); err != nil {
			return err // a key that was withdrawn gets its 401
		}
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil((1-left)/perSecond))))
		return refuse("rate_limited")
	}
	return nil
}

// learn gives a key that was found to be in force a bucket, and takes it from one that is not.
func (l *limits) learn(caller *store.Caller, err error) {
	key := [32]byte(caller.KeyHash)
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused) && refused.ConstraintName == db.Unauthenticated:
		l.buckets.Remove(key)
	case caller.KeyID != uuid.Nil && l.perMinute > 0 && !l.buckets.Contains(key):
		bucket := rate.NewLimiter(rate.Limit(float64(l.perMinute)/window), l.perMinute)
		bucket.Allow() // this request
		l.buckets.Add(key, bucket)
	}
}

// forgetLimits takes away what only those learn whose key is in force.
func forgetLimits(header http.Header) {
	header.Del("RateLimit-Policy")
	header.Del("RateLimit")
}
