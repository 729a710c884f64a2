package api_test

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

// Rate limits: so many requests a minute for each key, on each server.

func limitedTo(perMinute int) func(*api.Config, *pgxpool.Config) {
	return func(c *api.Config, _ *pgxpool.Config) { c.RateLimit = perMinute }
}

var rateLimit = regexp.MustCompile(`^"key";r=(\d+);t=(\d+)$`)

// left is what an answer says is left of its key's limit.
func (a answer) left(t testing.TB, perMinute int) int {
	t.Helper()
	if got, want := a.header.Get("RateLimit-Policy"), fmt.Sprintf(`"key";q=%d;w=60`, perMinute); got != want {
		t.Errorf("RateLimit-Policy is %q, want %q", got, want)
	}
	found := rateLimit.FindStringSubmatch(a.header.Get("RateLimit"))
	if found == nil {
		t.Fatalf("RateLimit is %q", a.header.Get("RateLimit"))
	}
	left, _ := strconv.Atoi(found[1])
	if reset, _ := strconv.Atoi(found[2]); reset < 0 || reset > 60 || left < 0 || left >= perMinute {
		t.Errorf("RateLimit is %q", a.header.Get("RateLimit"))
	}
	return left
}

func TestRateLimits(t *testing.T) {
	t.Parallel()
	const perMinute = 30 // a token every two seconds
	h := newHub(t, limitedTo(perMinute))
	c := h.newCaller(t, uuid.Nil, "*")
	other := h.newKey(t, c, "*") // of the same account
	start := time.Now()
	before, allowed := perMinute, 0
	var refused answer
	for n := 0; ; n++ {
		a := h.as(t, c, "GET", "/v1/projects", nil)
		if a.status == 429 {
			refused = a
			break
		}
		allowed++
		if left := a.wants(t, 200).left(t, perMinute); left > before+int(time.Since(start)/(2*time.Second)) || left > perMinute-1 {
			t.Errorf("request %d: %d left, %d before", n, left, before)
		} else {
			before = left
		}
		if n > 10*perMinute {
			t.Fatal("there is no limit")
		}
	}
	if extra := int(time.Since(start)/(2*time.Second)) + 1; allowed < perMinute || allowed > perMinute+extra {
		t.Errorf("%d requests were allowed, want %d and at most %d", allowed, perMinute, perMinute+extra)
	}
	refused.refused(t, 429, "rate_limited")
	if seconds, err := strconv.Atoi(refused.header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 2 {
		t.Errorf("Retry-After is %q", refused.header.Get("Retry-After"))
	}
	if left := refused.left(t, perMinute); left != 0 {
		t.Errorf("%d left", left)
	}
	// Each key has its own; what is public has none; who is nobody has none, and learns of none.
	h.as(t, other, "GET", "/v1/projects", nil).wants(t, 200)
	for range 2 * perMinute {
		if a := h.as(t, c, "GET", "/healthz", nil).wants(t, 200); a.header.Get("RateLimit") != "" || a.header.Get("RateLimit-Policy") != "" {
			t.Errorf("%v", a.header)
		}
		for _, key := range []string{"", "nonsense", unknownKey()} {
			a := h.as(t, caller{key: key}, "GET", "/v1/projects", nil)
			a.refused(t, 401, "unauthenticated")
			if a.header.Get("RateLimit") != "" || a.header.Get("RateLimit-Policy") != "" || a.header.Get("Retry-After") != "" {
				t.Errorf("%v", a.header)
			}
		}
	}
	// Refusals count as well, and tell what is left.
	eventually(t, "there is a token again", func() bool {
		return h.as(t, c, "GET", "/v1/nothing-of-the-contract", nil).status == 404 && h.as(t, c, "GET", "/v1/projects?nonsense=1", nil).status == 400
	})
	weak := h.newKey(t, c)
	if a := h.as(t, weak, "GET", "/v1/projects", nil); a.status != 403 || a.left(t, perMinute) != perMinute-1 {
		t.Errorf("status %d, %v", a.status, a.header)
	}
	for range perMinute {
		h.as(t, weak, "GET", "/v1/projects", nil)
	}
	// Another server counts for itself.
	h.replica(t, limitedTo(perMinute)).as(t, c, "GET", "/v1/projects", nil).wants(t, 200)
}

// All operations: the headers stand on every answer to a key that is in force.
func TestRateLimitHeadersOfEveryOperation(t *testing.T) {
	t.Parallel()
	const perMinute = 100_000
	h := newHub(t, limitedTo(perMinute))
	owner := h.newCaller(t, uuid.Nil, "*")
	for _, op := range operations(t) {
		if op.public {
			continue
		}
		f := h.newFamily(t, h.admin)
		s, ok := f.sampleOf(t, op)
		if !ok {
			continue
		}
		h.send(t, h.admin, s.with("nonsense=1")).wants(t, 400).left(t, perMinute)
		if len(op.scopes) > 0 {
			h.send(t, h.newKey(t, owner), s).wants(t, 403).left(t, perMinute)
		}
		h.send(t, h.admin, s).wants(t, s.status).left(t, perMinute)
	}
}

// A key that is withdrawn is told so, as often as it asks.
func TestS05_ARevokedKeyIsUnauthenticatedAndNotLimited(t *testing.T) {
	t.Parallel()
	const perMinute = 600
	h := newHub(t, limitedTo(perMinute))
	c := h.newCaller(t, uuid.Nil, "*")
	for range 3 {
		h.as(t, c, "GET", "/v1/projects", nil).wants(t, 200)
	}
	h.exec(t, "UPDATE api_keys SET revoked_at = now() WHERE id = $1", c.id)
	for range perMinute + 50 {
		a := h.as(t, c, "GET", "/v1/projects", nil)
		a.refused(t, 401, "unauthenticated")
		if a.header.Get("RateLimit") != "" || a.header.Get("RateLimit-Policy") != "" || a.header.Get("Retry-After") != "" {
			t.Fatalf("%v", a.header)
		}
	}
}

// At once: the limit holds for requests that come together.
func TestRateLimitsAtOnce(t *testing.T) {
	t.Parallel()
	const perMinute = 40
	h := newHub(t, limitedTo(perMinute))
	c := h.newCaller(t, uuid.Nil, "*")
	h.as(t, c, "GET", "/v1/projects", nil).wants(t, 200)
	start := time.Now()
	counts := h.race(t, 3*perMinute, func(int) int { return h.as(t, c, "GET", "/v1/projects", nil).status })
	if most := perMinute - 1 + int(time.Since(start).Seconds()*perMinute/60) + 1; counts[200] < perMinute-1 || counts[200] > most || counts[200]+counts[429] != 3*perMinute {
		t.Errorf("%v, want %d to %d", counts, perMinute-1, most)
	}
}

func TestNoRateLimit(t *testing.T) {
	t.Parallel()
	h := newHub(t, limitedTo(-1))
	for range 200 {
		if a := h.do(t, "GET", "/v1/projects", nil).wants(t, 200); a.header.Get("RateLimit") != "" || a.header.Get("RateLimit-Policy") != "" {
			t.Fatalf("%v", a.header)
		}
	}
	// By default there is one that nobody notices.
	if left := newHub(t).do(t, "GET", "/v1/projects", nil).wants(t, 200).left(t, 60_000); left < 59_000 {
		t.Errorf("%d left", left)
	}
}

// Also where it had none left.
func TestS05_ARevokedKeyThatHadNoneLeft(t *testing.T) {
	t.Parallel()
	h := newHub(t, limitedTo(2))
	c := h.newCaller(t, uuid.Nil, "*")
	for h.as(t, c, "GET", "/v1/projects", nil).status != 429 {
	}
	h.as(t, h.newKey(t, c, "*"), "POST", "/v1/api-keys/"+c.id.String()+"/revoke", nil).wants(t, 200)
	if a := h.as(t, c, "GET", "/v1/projects", nil).refused(t, 401, "unauthenticated"); a.header.Get("RateLimit") != "" || a.header.Get("RateLimit-Policy") != "" || a.header.Get("Retry-After") != "" {
		t.Errorf("%v", a.header)
	}
}
