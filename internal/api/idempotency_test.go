package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

// X09: a retry is safe, and leaks nothing.

func TestX09_EveryPOSTTakesAnIdempotencyKey(t *testing.T) {
	t.Parallel()
	posts := 0
	for _, op := range operations(t) {
		if declared := slices.Contains(op.headers, "Idempotency-Key"); declared != (op.method == "POST" && !op.streamed) {
			t.Errorf("%s %s: declared %v", op.method, op.id, declared)
		}
		if declared := slices.Contains(op.headers, "If-Match"); declared != (op.method == "PATCH" || op.method == "DELETE" && op.id != "removeDependency") { // an edge has no revision
			t.Errorf("%s %s: If-Match declared %v", op.method, op.id, declared)
		}
		if op.method == "POST" {
			posts++
		}
		// What shows a secret says so: then its answer is not kept.
		if shows := slices.Contains([]string{"createApiKey", "rotateApiKey", "createOrganization", "revealClientSecret"}, op.id); shows != op.secret {
			t.Errorf("%s: x-secret is %v", op.id, op.secret)
		}
	}
	if posts < 15 {
		t.Errorf("only %d", posts)
	}
}

// retriable are the operations that take the header.
func retriable(t testing.TB) (ops []contractOp) {
	t.Helper()
	for _, op := range operations(t) {
		if slices.Contains(op.headers, "Idempotency-Key") {
			ops = append(ops, op)
		}
	}
	return ops
}

func (h *hub) retry(t testing.TB, c caller, s sample, key string) answer {
	t.Helper()
	var body any
	if s.media != "" {
		body = s.body
	}
	return h.as(t, c, s.method, s.path, body, "Idempotency-Key", key)
}

// Every POST of the contract: the same again, another request, another account, a key that is older than a day, a refusal.
func TestX09_EveryPOSTCanBeSentAgain(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, op := range retriable(t) {
		t.Run(op.id, func(t *testing.T) {
			f, another := h.newFamily(t, h.admin), h.newFamily(t, h.admin)
			s, ok := f.sampleOf(t, op)
			if !ok {
				return
			}
			key := uuid.NewString()
			first := h.retry(t, h.admin, s, key).wants(t, s.status)
			if first.header.Get("Idempotency-Replayed") != "" {
				t.Error("the first answer says that it is replayed")
			}
			before := h.tables(t)
			for range 3 {
				again := h.retry(t, h.admin, s, key)
				if op.secret {
					again.refused(t, 409, "idempotency_secret_already_shown")
					if got := again.header.Get("Location"); got == "" || got != first.header.Get("Location") {
						t.Errorf("Location is %q, was %q", got, first.header.Get("Location"))
					}
					h.do(t, "GET", again.header.Get("Location"), nil).wants(t, 200)
					continue
				}
				again.wants(t, s.status)
				if again.header.Get("Idempotency-Replayed") != "true" || string(again.body) != string(first.body) {
					t.Errorf("%v %s, the first was %s", again.header, again.body, first.body)
				}
				for name := range first.header {
					if !slices.Contains([]string{"Date", "X-Request-Id", "Ratelimit", "Ratelimit-Policy"}, name) && again.header.Get(name) != first.header.Get(name) {
						t.Errorf("%s is %q, was %q", name, again.header.Get(name), first.header.Get(name))
					}
				}
			}
			// Another request with the key: another path, query or body, whatever the operation.
			others := []sample{}
			other, _ := another.sampleOf(t, op)
			if other.path != s.path || other.body != s.body {
				others = append(others, other)
			}
			if s.media != "" {
				spaced := s
				spaced.body += " "
				others = append(others, spaced)
			}
			if op.id != "createProject" {
				others = append(others, sample{"POST", "/v1/projects", "application/json", `{"slug":"s","name":"n"}`, 0})
			}
			for _, other := range others {
				h.retry(t, h.admin, other, key).refused(t, 422, "idempotency_key_reused", "header:Idempotency-Key")
			}
			h.unchanged(t, before, "the same again")

			// Another account's same key is its own; and so is the same account's in another organisation.
			colleague := h.newMember(t, h.admin.org, "owner", "*", "platform:*")
			theirs, _ := h.newFamily(t, h.admin).sampleOf(t, op)
			if a := h.retry(t, colleague, theirs, key).wants(t, s.status); a.header.Get("Idempotency-Replayed") != "" {
				t.Error("replayed to another account")
			}

			// After 24 hours it is new.
			h.exec(t, "UPDATE idempotency_keys SET created_at = created_at - interval '23 hours 59 minutes' WHERE key = $1", key)
			h.retry(t, h.admin, s, key).wants(t, map[bool]int{true: 409, false: s.status}[op.secret])
			h.exec(t, "UPDATE idempotency_keys SET created_at = created_at - interval '2 minutes' WHERE key = $1", key)
			fresh, _ := h.newFamily(t, h.admin).sampleOf(t, op)
			if a := h.retry(t, h.admin, fresh, key).wants(t, s.status); a.header.Get("Idempotency-Replayed") != "" {
				t.Error("replayed after a day")
			}
			if fresh.path != s.path || fresh.body != s.body {
				h.retry(t, h.admin, s, key).refused(t, 422, "idempotency_key_reused", "header:Idempotency-Key")
			}
			if n := h.count(t, "SELECT count(*) FROM idempotency_keys WHERE key = $1 AND account_id = $2", key, h.admin.account); n != 1 {
				t.Errorf("%d rows", n)
			}
			// The body is kept, or for a secret, not.
			if n := h.count(t, "SELECT count(*) FROM idempotency_keys WHERE key = $1 AND (body IS NULL) = $2", key, op.secret); n != 2 {
				t.Errorf("%d answers are kept as they should be", n)
			}
		})
	}
}

// A refused request leaves nothing, and can be sent again with its key when what stood against it is gone.
func TestX09_ARefusalIsNotKept(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	weak := h.newCaller(t, h.admin.org, "projects:read")
	h.newProject(t, "taken")
	for _, op := range retriable(t) {
		s, ok := f.sampleOf(t, op)
		if !ok {
			continue
		}
		key := uuid.NewString()
		before := h.tables(t)
		refusals := []answer{h.retry(t, caller{}, s, key), h.retry(t, caller{key: unknownKey()}, s, key), h.retry(t, weak, s, key), h.retry(t, h.admin, s.with("nonsense=1"), key)}
		if s.media != "" {
			broken := s
			broken.body = `{"nonsense":1}`
			refusals = append(refusals, h.retry(t, h.admin, broken, key))
		}
		if strings.Contains(op.path, "{") {
			nowhere := s
			nowhere.path = op.anyPath()
			refusals = append(refusals, h.retry(t, h.admin, nowhere, key))
		}
		for i, a := range refusals {
			if want := []int{401, 401, 403, 400, 400, 404}; a.status < 400 || a.status > 422 || i < 4 && a.status != want[i] {
				t.Errorf("%s: refusal %d has status %d: %s", op.id, i, a.status, a.body)
			}
		}
		h.unchanged(t, before, op.id+", refused")
		if a := h.retry(t, h.admin, s, key); a.status != s.status || a.header.Get("Idempotency-Replayed") != "" {
			t.Errorf("%s: status %d after the refusals: %s", op.id, a.status, a.body)
		}
	}
	// By a rule of the database: with a statement that has failed, in the middle.
	for i, r := range []struct{ path, body, code, mend string }{
		{"/v1/projects", `{"slug":"taken","name":"n"}`, "projects_slug_key", "UPDATE projects SET slug = 'free' WHERE slug = 'taken'"},
		{"/v1/accounts", `{"kind":"human","displayName":"n","email":"a@example.com"}`, "accounts_email_key", "UPDATE accounts SET email = NULL WHERE email = 'A@example.com'"},
		{"/v1/members", `{"accountId":"` + f.heir + `"}`, "organization_members_pkey", "DELETE FROM organization_members WHERE account_id = '" + f.account + "'"},
	} {
		switch i {
		case 1:
			h.newAccount(t, h.admin, `{"kind":"human","displayName":"n","email":"A@example.com"}`)
		case 2:
			r.body = strings.ReplaceAll(r.body, f.heir, f.account)
		}
		s := sample{"POST", r.path, "application/json", r.body, 201}
		for range 2 {
			h.retry(t, h.admin, s, "rule").wants(t, 409)
			if p := h.retry(t, h.admin, s, "rule").problem(t); p.Code != r.code {
				t.Errorf("%s", p.Code)
			}
		}
		h.exec(t, r.mend)
		a := h.retry(t, h.admin, s, "rule").wants(t, 201)
		if b := h.retry(t, h.admin, s, "rule").wants(t, 201); string(a.body) != string(b.body) || b.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%s, before %s", b.body, a.body)
		}
		h.exec(t, "DELETE FROM idempotency_keys")
	}
}

func TestX09_MalformedKeys(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	before := h.tables(t)
	for _, key := range []string{"a b", "é", "a\tb", "\xff", strings.Repeat("a", 256), `"a b"`} {
		h.as(t, h.admin, "POST", "/v1/projects", `{"slug":"a","name":"n"}`, "Idempotency-Key", key).refused(t, 400, "invalid_request", "header:Idempotency-Key")
	}
	const body = `{"slug":"a","name":"n"}`
	for _, lines := range []string{"\nIdempotency-Key:", "\nIdempotency-Key: ", "\nIdempotency-Key: a\nIdempotency-Key: b", "\nIdempotency-Key: a, b"} {
		a := h.raw(t, h.admin.head("POST", "/v1/projects", fmt.Sprintf("\nContent-Type: application/json\nContent-Length: %d", len(body))+lines), body, false)
		if a.status != 400 {
			t.Errorf("%q: status %d: %s", lines, a.status, a.body)
		}
	}
	h.unchanged(t, before, "malformed keys")
	for i, key := range []string{"a", "!", "~", `"quoted"`, strings.Repeat("a", 255), "' OR 1=1 --"[:1], uuid.NewString(), "%00", "\\u0000"} {
		h.as(t, h.admin, "POST", "/v1/projects", fmt.Sprintf(`{"slug":"a-%d","name":"n"}`, i), "Idempotency-Key", key).wants(t, 201)
	}
	// On what is no POST it means nothing, and is no harm.
	h.do(t, "GET", "/v1/projects", nil, "Idempotency-Key", "a").wants(t, 200)
	h.do(t, "GET", "/v1/projects", nil, "Idempotency-Key", "a b").wants(t, 200)
}

// Many at once with one key: the effect happens once, and everybody is answered with it or told to wait.
func TestX09_ManyAtOnce(t *testing.T) {
	t.Parallel()
	const many = 32
	h := newHub(t)
	servers := []*hub{h, h.replica(t)}
	for _, op := range retriable(t) {
		t.Run(op.id, func(t *testing.T) {
			for round := range 3 {
				f := h.newFamily(t, h.admin)
				s, ok := f.sampleOf(t, op)
				if !ok {
					return
				}
				key := uuid.NewString()
				entries := h.count(t, "SELECT count(*) FROM audit_logs")
				var fresh atomic.Int32
				counts := h.race(t, many, func(i int) int {
					a := servers[i%2].retry(t, h.admin, s, key)
					switch a.status {
					case s.status:
						if a.header.Get("Idempotency-Replayed") == "" {
							fresh.Add(1)
						}
					case 409:
						if p := a.problem(t); p.Code != "idempotency_in_progress" && (p.Code != "idempotency_secret_already_shown" || !op.secret) {
							t.Errorf("round %d: %s", round, a.body)
						}
					default:
						t.Errorf("round %d: status %d: %s", round, a.status, a.body)
					}
					return a.status
				})
				if fresh.Load() != 1 || counts[s.status]+counts[409] != many {
					t.Errorf("round %d: %d were done, %v", round, fresh.Load(), counts)
				}
				if n := h.count(t, "SELECT count(*) FROM idempotency_keys WHERE key = $1", key); n != 1 {
					t.Errorf("%d answers are kept", n)
				}
				// As many entries as one such request makes.
				if made := h.count(t, "SELECT count(*) FROM audit_logs") - entries; made > 6 {
					t.Errorf("%d entries in the audit log", made)
				}
			}
		})
	}
	// What makes rows makes one.
	project := h.newProject(t, "many")
	for path, w := range map[string]struct{ body, count string }{
		"/v1/sessions": {`{"projectId":"` + project + `","title":"once"}`, "SELECT count(*) FROM sessions WHERE title = 'once'"},
		"/v1/accounts": {`{"kind":"human","displayName":"once"}`, "SELECT count(*) FROM accounts WHERE display_name = 'once'"},
		"/v1/api-keys": {`{"name":"once","scopes":[]}`, "SELECT count(*) FROM api_keys WHERE name = 'once'"},
		"/v1/projects": {`{"slug":"once","name":"once"}`, "SELECT count(*) FROM projects WHERE name = 'once'"},
	} {
		h.race(t, many, func(i int) int {
			return servers[i%2].retry(t, h.admin, sample{"POST", path, "application/json", w.body, 201}, "once"+strings.ReplaceAll(path, "/", "-")).status
		})
		if n := h.count(t, w.count); n != 1 {
			t.Errorf("%s: %d", path, n)
		}
	}
}

// While the first is under way, the second is told so, at once; afterwards it gets the first one's answer.
func TestX09_InProgress(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	other := h.replica(t)
	f := h.newFamily(t, h.admin)
	s := sample{"POST", "/v1/sessions/" + f.session + "/messages", "application/json", `{"messages":[{"role":"user"}]}`, 201}
	locked := h.begin(t)
	locked("SELECT FROM sessions WHERE id = $1 FOR UPDATE", f.session)
	got := make(chan answer, 1)
	go func() { got <- h.retry(t, h.admin, s, "k") }()
	eventually(t, "the first waits for the lock", func() bool { return h.waiting() == 1 })
	for range 3 {
		h.retry(t, h.admin, s, "k").refused(t, 409, "idempotency_in_progress")
		other.retry(t, h.admin, s, "k").refused(t, 409, "idempotency_in_progress")
	}
	// Another key is not held up by it, nor another account's same key, at the door at least.
	h.retry(t, h.admin, sample{"POST", "/v1/projects", "application/json", `{"slug":"a","name":"n"}`, 201}, "k2").wants(t, 201)
	h.retry(t, h.newMember(t, h.admin.org, "member", "*"), sample{"POST", "/v1/projects", "application/json", `{"slug":"b","name":"n"}`, 201}, "k").wants(t, 201)
	locked("ROLLBACK")
	first := (<-got).wants(t, 201)
	again := other.retry(t, h.admin, s, "k").wants(t, 201)
	if string(again.body) != string(first.body) || again.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%s, the first was %s", again.body, first.body)
	}
	if n := h.count(t, "SELECT count(*) FROM messages WHERE session_id = $1", f.session); n != 2 {
		t.Errorf("%d messages", n)
	}
}

// commitBreaker cuts the connection where a transaction with a note would commit, as a crash does.
type commitBreaker struct{ broken atomic.Bool }

func (b *commitBreaker) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if data.SQL == "COMMIT" && b.broken.Load() {
		_ = conn.PgConn().Conn().Close()
	}
	return ctx
}
func (b *commitBreaker) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// The answer is kept together with its effect, or neither is: after a crash before the commit the request is new, after a failure to
// keep the answer there is no effect.
func TestX09_AnswerAndEffectAreOne(t *testing.T) {
	t.Parallel()
	tracer := &commitBreaker{}
	h := newHub(t, func(_ *api.Config, p *pgxpool.Config) { p.ConnConfig.Tracer = tracer })
	for _, op := range retriable(t) {
		t.Run(op.id, func(t *testing.T) {
			f := h.newFamily(t, h.admin)
			s, ok := f.sampleOf(t, op)
			if !ok {
				return
			}
			before := h.tables(t)
			tracer.broken.Store(true)
			h.retry(t, h.admin, s, op.id).refused(t, 503, "database_unavailable")
			tracer.broken.Store(false)
			eventually(t, "it is rolled back", func() bool {
				return h.count(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'") == 0
			})
			h.unchanged(t, before, "a crash before the commit")

			h.exec(t, "ALTER TABLE idempotency_keys ADD CONSTRAINT has_no_room CHECK (key <> '"+op.id+"') NOT VALID")
			if a := h.retry(t, h.admin, s, op.id); a.status < 500 || strings.Contains(string(a.body), "hub_") {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			h.unchanged(t, before, "an answer that is not kept")
			h.exec(t, "ALTER TABLE idempotency_keys DROP CONSTRAINT has_no_room")
			if a := h.retry(t, h.admin, s, op.id).wants(t, s.status); a.header.Get("Idempotency-Replayed") != "" {
				t.Error("replayed")
			}
		})
	}
}

// What fails only at the commit, where the answer was made already, is refused: nobody sees that answer.
func TestX09_AFailureAtTheCommit(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.exec(t, `CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN PERFORM raise_rule('projects_slug_shape_check', 'late'); RETURN NULL; END $f$;
		CREATE CONSTRAINT TRIGGER late AFTER INSERT ON projects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.slug = 'late') EXECUTE FUNCTION late()`)
	before := h.tables(t)
	for range 2 {
		h.do(t, "POST", "/v1/projects", `{"slug":"late","name":"n"}`, "Idempotency-Key", "k").refused(t, 422, "projects_slug_shape_check", "/slug")
		h.do(t, "POST", "/v1/projects", `{"slug":"late","name":"n"}`).refused(t, 422, "projects_slug_shape_check", "/slug")
	}
	h.unchanged(t, before, "a failure at the commit")
}

// Deadlocks and serialization failures are tried again with the whole transaction.
func TestX09_RetriedTransactions(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.exec(t, `CREATE SEQUENCE attempts; GRANT USAGE ON SEQUENCE attempts TO PUBLIC;
		CREATE FUNCTION stumble() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN
			IF nextval('public.attempts') % 3 <> 0 THEN RAISE EXCEPTION 'stumbled' USING ERRCODE = '40001'; END IF; RETURN NEW; END $f$;
		CREATE TRIGGER stumble BEFORE INSERT ON projects FOR EACH ROW EXECUTE FUNCTION stumble()`)
	for i := range 3 {
		s := sample{"POST", "/v1/projects", "application/json", fmt.Sprintf(`{"slug":"p-%d","name":"n"}`, i), 201}
		a := h.retry(t, h.admin, s, fmt.Sprint(i)).wants(t, 201)
		if b := h.retry(t, h.admin, s, fmt.Sprint(i)).wants(t, 201); string(a.body) != string(b.body) {
			t.Errorf("%s, before %s", b.body, a.body)
		}
	}
	if n := h.count(t, "SELECT count(*) FROM projects"); n != 3 {
		t.Errorf("%d projects", n)
	}
}

// No secret is anywhere in what is kept, also not in headers, and a replay after the key was withdrawn says nothing.
func TestX09_NoSecretIsKept(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	for _, op := range retriable(t) {
		if !op.secret || op.id == "revealClientSecret" { // TestX09_ARevealedValueIsNotKept
			continue
		}
		s, _ := f.sampleOf(t, op)
		a := h.retry(t, h.admin, s, op.id).wants(t, 201)
		var shown struct{ Key, OwnerKey string }
		a.into(t, &shown)
		secret := shown.Key + shown.OwnerKey
		if !strings.HasPrefix(secret, "hub_") {
			t.Fatalf("%s shows %q", op.id, secret)
		}
		for _, text := range []string{secret, secret[4:], fmt.Sprintf("%x", secret), fmt.Sprintf("%x", secret[4:])} {
			if found := h.everywhere(t, text); found != nil {
				t.Errorf("%s: the secret stands in %v", op.id, found)
			}
		}
		if n := h.count(t, "SELECT count(*) FROM idempotency_keys WHERE key = $1 AND body IS NULL AND headers::text NOT LIKE '%hub%'", op.id); n != 1 {
			t.Errorf("%s: the answer is kept", op.id)
		}
		b := h.retry(t, h.admin, s, op.id).refused(t, 409, "idempotency_secret_already_shown")
		if strings.Contains(string(b.body)+fmt.Sprint(b.header), secret) {
			t.Errorf("%s: the replay shows it: %s", op.id, b.body)
		}
	}
	// A replay is for who may still send the request.
	c := h.newMember(t, h.admin.org, "admin", "*")
	s := sample{"POST", "/v1/accounts", "application/json", `{"kind":"human","displayName":"x"}`, 201}
	h.retry(t, c, s, "k").wants(t, 201)
	h.exec(t, "UPDATE organization_members SET membership_level = 'member' WHERE account_id = $1", c.account)
	h.retry(t, c, s, "k").refused(t, 403, "insufficient_level")
	h.exec(t, "UPDATE organization_members SET membership_level = 'admin' WHERE account_id = $1; ", c.account)
	h.retry(t, h.newKey(t, c, "projects:read"), s, "k").refused(t, 403, "insufficient_scope")
	if a := h.retry(t, h.newKey(t, c, "accounts:write"), s, "k").wants(t, 201); a.header.Get("Idempotency-Replayed") != "true" { // another key of the same account
		t.Error("not replayed")
	}
	h.exec(t, "UPDATE api_keys SET revoked_at = now() WHERE id = $1", c.id)
	h.retry(t, c, s, "k").refused(t, 401, "unauthenticated")
}

// The answers that are kept are those of a day, and go in batches.
func TestX09_OldAnswersArePurged(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for i := range 7 {
		h.do(t, "POST", "/v1/projects", fmt.Sprintf(`{"slug":"p-%d","name":"n"}`, i), "Idempotency-Key", fmt.Sprint(i)).wants(t, 201)
	}
	h.exec(t, "UPDATE idempotency_keys SET created_at = created_at - interval '25 hours' WHERE key < '5'")
	for _, want := range []int{2, 2, 1, 0} {
		if n := h.count(t, "SELECT purge_idempotency_keys(2)"); n != want {
			t.Errorf("%d went, want %d", n, want)
		}
	}
	if n := h.count(t, "SELECT count(*) FROM idempotency_keys"); n != 2 {
		t.Errorf("%d are left", n)
	}
}

// A body that is kept is what was sent, to the byte, large ones too; and Hub-Session is no part of the request.
func TestX09_BodiesOfAllSizes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	path := "/v1/sessions/" + f.session + "/messages"
	for i, size := range []int{0, 1000, 70 << 10, 2 << 20} { // beyond what is checked before authentication
		text, err := json.Marshal(strings.Repeat("é\u2028", size/5) + "\x00")
		if err != nil {
			t.Fatal(err)
		}
		s := sample{"POST", path, "application/json", `{"messages":[{"role":"user","data":{"x":` + string(text) + `}}]}`, 201}
		a := h.retry(t, h.admin, s, fmt.Sprint(i)).wants(t, 201)
		b := h.as(t, h.admin, s.method, s.path, s.body, "Idempotency-Key", fmt.Sprint(i), "Hub-Session", f.session).wants(t, 201)
		if string(a.body) != string(b.body) || b.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("%d bytes: %d of %d", size, len(b.body), len(a.body))
		}
		s.body = strings.Replace(s.body, `"role":"user"`, `"role":"assistant"`, 1)
		h.retry(t, h.admin, s, fmt.Sprint(i)).refused(t, 422, "idempotency_key_reused", "header:Idempotency-Key")
	}
	if n := h.count(t, "SELECT count(*) FROM messages WHERE session_id = $1", f.session); n != 5 {
		t.Errorf("%d messages", n)
	}
}

// Of many with one key at once, none is told that what the others made stands against it.
func TestX09_ARetryIsNoConflict(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	servers := []*hub{h, h.replica(t)}
	for round := range 150 {
		s := sample{"POST", "/v1/projects", "application/json", fmt.Sprintf(`{"slug":"p-%d","name":"n"}`, round), 201}
		h.race(t, 32, func(i int) int {
			a := servers[i%2].retry(t, h.admin, s, fmt.Sprint(round))
			if a.status != 201 && a.problem(t).Code != "idempotency_in_progress" {
				t.Errorf("round %d: %s", round, a.body)
			}
			return a.status
		})
	}
}
