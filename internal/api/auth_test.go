package api_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
	"github.com/alkdev/hub/internal/apikey"
)

// anyPath fills an operation's path with ids that are nowhere, and its query with what it needs to be well formed.
func (op contractOp) anyPath() string {
	path := op.path
	for strings.Contains(path, "{") {
		before, rest, _ := strings.Cut(path, "{")
		_, after, _ := strings.Cut(rest, "}")
		path = before + uuid.NewString() + after
	}
	switch {
	case op.streamed:
		path += "?projectId=" + uuid.NewString()
	case op.id == "searchAccounts":
		path += "?q=x"
	}
	return path
}

// An operation without scopes would be open to every key: only to say who is asking takes none.
func TestEveryOperationIsPublicOrHasScopes(t *testing.T) {
	t.Parallel()
	for _, op := range operations(t) {
		if op.public != (len(op.scopes) == 0) && op.id != "getMe" {
			t.Errorf("%s: public %v, scopes %v", op.id, op.public, op.scopes)
		}
		if !slices.Contains([]string{"member", "admin", "owner"}, op.level) || op.public && op.level != "member" {
			t.Errorf("%s: the level %q", op.id, op.level)
		}
		for _, scope := range op.scopes {
			if scope == "platform:*" {
				if len(op.scopes) > 1 {
					t.Errorf("%s %s wants %v", op.method, op.id, op.scopes)
				}
				continue
			}
			noun, verb, _ := strings.Cut(scope, ":")
			if noun == "platform" && verb == "*" {
				continue
			}
			if noun == "" || !slices.Contains([]string{"read", "write", "admin"}, verb) {
				t.Errorf("%s: the scope %q", op.id, scope)
			}
			// Reading is reading and writing writing, whatever the path.
			if (op.method == "GET") != (verb == "read") {
				t.Errorf("%s %s wants %s", op.method, op.id, scope)
			}
		}
	}
}

// Every way in which a key can fail is the same 401 (S05), on every operation, and it is told before what is wrong with the
// request. The body is sent in three forms: as the operation wants it, wrong, and wrong and so large that the server does not
// read it before it knows who asks.
func TestS05_EveryWayToFailIsTheSame401(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)

	// Keys that were good, and then are not. Each is used once before it is spoilt.
	spoilt := map[string]caller{}
	for name, sql := range map[string]string{
		"revoked":              "UPDATE api_keys SET revoked_at = now() WHERE account_id = $1",
		"revoked in future":    "UPDATE api_keys SET revoked_at = now() + interval '1 hour' WHERE account_id = $1",
		"disabled":             "UPDATE api_keys SET enabled = false WHERE account_id = $1",
		"expired":              "UPDATE api_keys SET expires_at = now() - interval '1 microsecond' WHERE account_id = $1",
		"account suspended":    "UPDATE accounts SET status = 'suspended' WHERE id = $1",
		"account deactivated":  "UPDATE accounts SET status = 'deactivated' WHERE id = $1",
		"organisation deleted": "UPDATE organizations SET deleted_at = now() WHERE owner_id = $1",
		"key deleted":          "DELETE FROM api_keys WHERE account_id = $1",
		"no member any more":   "DELETE FROM organization_members WHERE account_id = $1",
	} {
		org := uuid.Nil
		if name == "no member any more" {
			org = h.admin.org
		}
		c := h.newCaller(t, org, "*")
		h.as(t, c, "GET", "/v1/projects", nil).wants(t, 200)
		h.exec(t, sql, c.account)
		spoilt[name] = c
	}
	good := h.newCaller(t, uuid.Nil, "*", "platform:*")
	mistyped := []byte(good.key)
	mistyped[10] ^= 1
	headers := map[string]string{
		"no header":        "",
		"empty":            " ",
		"only the scheme":  "Bearer",
		"only the key":     good.key,
		"another scheme":   "Basic " + good.key,
		"no space":         "Bearer" + good.key,
		"two spaces":       "Bearer  " + good.key,
		"a tab":            "Bearer\t" + good.key,
		"a word behind":    "Bearer " + good.key + " x",
		"a list":           "Bearer " + good.key + ",Bearer " + good.key,
		"malformed":        "Bearer nonsense",
		"quoted":           `Bearer "` + good.key + `"`,
		"mistyped":         "Bearer " + string(mistyped),
		"cut short":        "Bearer " + good.key[:len(good.key)-1],
		"too long":         "Bearer " + good.key + "0",
		"another prefix":   "Bearer HUB_" + good.key[4:],
		"unknown":          "Bearer " + unknownKey(),
		"very long":        "Bearer " + strings.Repeat("a", 100_000),
		"not ASCII":        "Bearer hub_\xff\xfe",
		"the hash":         fmt.Sprintf("Bearer %x", mustHash(t, good.key)),
		"an injection":     "Bearer ' OR 1=1 --",
		"a key in base64":  "Basic aHViOmh1Yg==",
		"an empty bearer":  "Bearer ",
		"several schemes":  "Bearer Bearer " + good.key,
		"a scheme's param": "Bearer realm=" + good.key,
	}
	for name, c := range spoilt {
		headers[name] = "Bearer " + c.key
	}
	before := h.tables(t)
	for _, op := range operations(t) {
		if op.public {
			continue
		}
		path := op.anyPath()
		var reference string
		for _, name := range slices.Sorted(maps.Keys(headers)) {
			var extra []string
			if headers[name] != "" {
				extra = []string{"Authorization", headers[name]}
			}
			bodies := []any{nil}
			if op.media != "" {
				bodies = []any{"{}", `{"nonsense":`, `{"nonsense":"` + strings.Repeat("x", 70<<10) + `"}`}
				if !strings.Contains("no header mistyped revoked", name) {
					bodies = bodies[1:2]
				}
			}
			for i, body := range bodies {
				for _, target := range []string{path, path + map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + "nonsense=1&nonsense=%zz"} {
					a := h.as(t, caller{}, op.method, target, body, append(extra, "If-Match", "nonsense")...)
					a.refused(t, 401, "unauthenticated")
					if got := a.header.Get("WWW-Authenticate"); got != `Bearer realm="hub"` {
						t.Errorf("%s, %s: WWW-Authenticate is %q", op.id, name, got)
					}
					p := a.problem(t)
					same := strings.ReplaceAll(string(a.body), p.RequestID, "")
					if reference == "" {
						reference = same
					}
					if same != reference {
						t.Errorf("%s, %s, body %d: %s, others get %s", op.id, name, i, same, reference)
					}
					for header := range a.header {
						if !slices.Contains([]string{"Content-Type", "Content-Length", "Date", "Www-Authenticate", "X-Request-Id", "X-Content-Type-Options", "Connection"}, header) {
							t.Errorf("%s, %s: the header %s", op.id, name, header)
						}
					}
				}
			}
		}
		if op.id == "startSecretRotation" { // without a body it is in order, and does something
			continue
		}
		// The twin: the same request with the key spelled right is not refused for its key, whatever the scheme's case.
		for _, scheme := range []string{"Bearer", "bearer", "BEARER"} {
			if a := h.as(t, caller{}, op.method, path, map[bool]any{true: nil, false: "{}"}[op.media == ""], "Authorization", scheme+" "+good.key); a.status == 401 || a.status == 403 || a.status >= 500 {
				t.Errorf("%s with a good key (%s): status %d: %s", op.id, scheme, a.status, a.body)
			}
		}
	}
	h.unchanged(t, before, "unauthenticated requests")
	// No key was written into the log.
	for name, c := range spoilt {
		if strings.Contains(log.String(), c.key) {
			t.Errorf("the key that is %s stands in the log", name)
		}
	}
	for _, key := range []string{good.key, string(mistyped), h.admin.key, good.key[4:], fmt.Sprintf("%x", mustHash(t, good.key))} {
		if strings.Contains(log.String(), key) {
			t.Errorf("%s stands in the log", key)
		}
	}
}

func mustHash(t testing.TB, key string) []byte {
	t.Helper()
	hash, err := apikey.Hash(key)
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

func (s sample) with(query string) sample {
	s.path += map[bool]string{true: "&", false: "?"}[strings.Contains(s.path, "?")] + query
	return s
}

// bad are forms of a request that are refused for more than one reason: which of them is told says who was asked first.
func (s sample) bad() []sample {
	nonsense := s.with("nonsense=1")
	broken, large := nonsense, s
	broken.body = `{"nonsense":`
	large.body = `{"nonsense":"` + strings.Repeat("x", 70<<10) + `"}`
	return []sample{s, nonsense, broken, large}
}

// tenant is an organisation of its own: its owner, a caller with exactly what an operation needs, and a family for that caller.
func (h *hub) tenant(t testing.TB, op contractOp, scopes ...string) (owner, right caller, f family) {
	t.Helper()
	owner = h.newCaller(t, uuid.Nil, "*")
	if op.level == "owner" { // some of these take the accountable one
		right = h.newKey(t, owner, scopes...)
	} else {
		right = h.newMember(t, owner.org, op.level, scopes...)
	}
	return owner, right, h.newFamily(t, owner, right)
}

// Who may use an operation, and what everybody else is told: a key, in force, of this organisation, with the scope, whose holder has the
// level. Whether the request is in order is not told to who may not send it.
func TestEveryOperationAsksForKeyScopeAndLevel(t *testing.T) {
	t.Parallel()
	var h *hub
	var stranger caller
	scopes := allScopes(t)
	for i, op := range operations(t) {
		if i%30 == 0 { // every row of a hub is looked at for every operation: few rows
			h = newHub(t)
			stranger = h.newCaller(t, uuid.Nil, "*")
		}
		if op.public {
			continue
		}
		t.Run(op.id, func(t *testing.T) {
			owner, right, f := h.tenant(t, op, op.scopes...)
			s, ok := f.sampleOf(t, op)
			if !ok {
				return
			}
			with := func(scopes ...string) caller { return h.newMember(t, owner.org, "owner", scopes...) }
			var lacking, below []caller
			if len(op.scopes) > 0 {
				noun, _, _ := strings.Cut(op.scopes[0], ":")
				without := slices.DeleteFunc(slices.Clone(scopes), func(scope string) bool { return slices.Contains(op.scopes, scope) })
				lacking = []caller{with(), with(without...)}
				if op.scopes[0] == "platform:*" {
					demoted := with("*", "platform:*") // what an admin's key holds counts while its account is an admin's
					h.exec(t, "UPDATE accounts SET access_level = 'member' WHERE id = $1", demoted.account)
					lacking = append(lacking, owner, with("*"), demoted)
				} else {
					lacking = append(lacking, with("platform:*"))
					for _, verb := range []string{"read", "write", "admin"} {
						if scope := noun + ":" + verb; !slices.Contains(op.scopes, scope) {
							lacking = append(lacking, with(scope))
						}
					}
				}
			}
			for _, level := range []string{"member", "admin"} {
				if level == op.level || op.level == "member" {
					break
				}
				below = append(below, h.newMember(t, owner.org, level, "*"), h.newMember(t, owner.org, level, op.scopes...))
			}
			spoilt := h.newKey(t, right, op.scopes...)
			h.exec(t, "UPDATE api_keys SET revoked_at = now() WHERE id = $1", spoilt.id)
			before := h.tables(t)
			for _, request := range s.bad() {
				for _, c := range []caller{{}, {key: "nonsense"}, {key: unknownKey()}, spoilt} {
					h.send(t, c, request).refused(t, 401, "unauthenticated")
				}
				for i, c := range lacking {
					a := h.send(t, c, request)
					a.refused(t, 403, "insufficient_scope")
					for _, scope := range op.scopes {
						if !strings.Contains(a.problem(t).Detail, scope) {
							t.Errorf("key %d: the answer does not name %s: %s", i, scope, a.body)
						}
					}
				}
				for _, c := range below {
					a := h.send(t, c, request)
					a.refused(t, 403, "insufficient_level")
					if !strings.Contains(a.problem(t).Detail, op.level) {
						t.Errorf("the answer does not name the level %s: %s", op.level, a.body)
					}
				}
			}
			// A key of another organisation: there is nothing, or a list of its own.
			if inPath, elsewhere := f.namedBy(s); op.id != "addMember" && (inPath || elsewhere || op.method == "GET") {
				a := h.send(t, stranger, s)
				switch {
				case slices.Contains(op.scopes, "platform:*"):
					a.refused(t, 403, "insufficient_scope")
				case inPath:
					if code := a.wants(t, 404).problem(t).Code; !strings.HasSuffix(code, "_not_found") {
						t.Errorf("%s", a.body)
					}
				case elsewhere:
					if code := a.wants(t, 422).problem(t).Code; !strings.HasSuffix(code, "_fkey") {
						t.Errorf("%s", a.body)
					}
				default:
					for _, id := range f.ids() {
						if strings.Contains(string(a.wants(t, 200).body), id) {
							t.Errorf("a stranger's list has %s: %s", id, a.body)
						}
					}
				}
			}
			h.unchanged(t, before, "requests of those who may not")

			// The twins: exactly what it takes, and the same by everything that it takes.
			h.send(t, right, s.with("nonsense=1")).refused(t, 400, "invalid_request", "query:nonsense")
			h.send(t, right, s).wants(t, s.status)
			all := []string{"*"}
			if slices.Contains(op.scopes, "platform:*") {
				all = []string{"*", "platform:*"}
			}
			_, right, f = h.tenant(t, op, all...)
			s, _ = f.sampleOf(t, op)
			h.send(t, right, s).wants(t, s.status)
		})
	}
}

// A platform admin has no need of a membership level, but of the scope.
func TestX01_PlatformAdminsRankAboveLevels(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, op := range operations(t) {
		if op.level == "member" || op.public {
			continue
		}
		owner := h.newCaller(t, uuid.Nil, "*")
		s, ok := h.newFamily(t, owner).sampleOf(t, op)
		if !ok {
			continue
		}
		t.Run(op.id, func(t *testing.T) {
			h.send(t, h.newMember(t, owner.org, "member", "platform:*"), s).refused(t, 403, "insufficient_scope")
			h.send(t, h.newMember(t, owner.org, "member", op.scopes...), s).refused(t, 403, "insufficient_level")
			h.send(t, h.newMember(t, owner.org, "member", append([]string{"platform:*"}, op.scopes...)...), s).wants(t, s.status)
		})
	}
}

// What an operation itself refuses, before its first statement, is not told to strangers either.
func TestRefusalsComeAfterAuthentication(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	lacking := h.newCaller(t, h.admin.org, "roles:read")
	for _, r := range []struct {
		s       sample
		ifMatch string
		code    string
	}{
		{sample{"GET", "/v1/projects?cursor=x", "", "", 400}, "", "invalid_cursor"},
		{sample{"GET", "/v1/sessions?cursor=x", "", "", 400}, "", "invalid_cursor"},
		{sample{"GET", "/v1/sessions/" + f.session + "/messages?cursor=x", "", "", 400}, "", "invalid_cursor"},
		{sample{"PATCH", "/v1/projects/" + f.project, "application/json", `{}`, 400}, "x", "invalid_request"},
		{sample{"PATCH", "/v1/projects/" + f.project, "application/json", `{}`, 412}, `"x"`, "precondition_failed"},
		{sample{"PATCH", "/v1/sessions/" + f.session, "application/json", `{}`, 412}, `W/"1"`, "precondition_failed"},
		{sample{"DELETE", "/v1/sessions/" + f.session, "", "", 400}, "x", "invalid_request"},
		{sample{"DELETE", "/v1/projects/" + f.project, "", "", 412}, `""`, "precondition_failed"},
		{sample{"POST", "/v1/projects", "application/json", `{"slug":"a","name":"b","data":{"deep":` + strings.Repeat("[", 256) + strings.Repeat("]", 256) + `}}`, 400}, "", "invalid_json"},
	} {
		send := func(c caller) answer {
			var body any
			if r.s.media != "" {
				body = r.s.body
			}
			if r.ifMatch == "" {
				return h.as(t, c, r.s.method, r.s.path, body)
			}
			return h.as(t, c, r.s.method, r.s.path, body, "If-Match", r.ifMatch)
		}
		send(caller{key: unknownKey()}).refused(t, 401, "unauthenticated")
		send(lacking).refused(t, 403, "insufficient_scope")
		if p := send(h.admin).wants(t, r.s.status).problem(t); p.Code != r.code {
			t.Errorf("%s %s: %s, want %s", r.s.method, r.s.path, p.Code, r.code)
		}
	}
}

// Public operations ask for no key, and do not look at one.
func TestPublicOperationsNeedNoKey(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	public := 0
	for _, op := range operations(t) {
		if !op.public {
			continue
		}
		public++
		s, ok := (family{}).sampleOf(t, op)
		if !ok {
			continue
		}
		for _, key := range []string{"", "nonsense", unknownKey(), h.admin.key} {
			h.send(t, caller{key: key}, s).wants(t, s.status)
		}
	}
	if public < 3 {
		t.Errorf("%d public operations", public)
	}
}

// What is withdrawn is gone with the next request, also on a connection that is open, and comes back when it is given back.
func TestRevocationWorksAtOnce(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for name, w := range map[string]struct{ spoil, mend string }{
		"key revoked":            {"UPDATE api_keys SET revoked_at = now() WHERE account_id = $1", ""},
		"key disabled":           {"UPDATE api_keys SET enabled = false WHERE account_id = $1", "UPDATE api_keys SET enabled = true WHERE account_id = $1"},
		"key expired":            {"UPDATE api_keys SET expires_at = now() WHERE account_id = $1", "UPDATE api_keys SET expires_at = now() + interval '1 hour' WHERE account_id = $1"},
		"account suspended":      {"UPDATE accounts SET status = 'suspended' WHERE id = $1", "UPDATE accounts SET status = 'active' WHERE id = $1"},
		"organisation deleted":   {"UPDATE organizations SET deleted_at = now() WHERE owner_id = $1", "UPDATE organizations SET deleted_at = NULL WHERE owner_id = $1"},
		"scope taken":            {"UPDATE api_keys SET scopes = '{sessions:read}' WHERE account_id = $1", "UPDATE api_keys SET scopes = '{projects:read}' WHERE account_id = $1"},
		"all taken but platform": {"UPDATE api_keys SET scopes = '{platform:*}' WHERE account_id = $1", "UPDATE api_keys SET scopes = '{*}' WHERE account_id = $1"},
	} {
		c := h.newCaller(t, uuid.Nil, "*")
		if name == "all taken but platform" {
			c = h.newCaller(t, uuid.Nil, "*", "platform:*")
		}
		for range 3 {
			h.as(t, c, "GET", "/v1/projects", nil).wants(t, 200)
		}
		h.exec(t, w.spoil, c.account)
		if a := h.as(t, c, "GET", "/v1/projects", nil); a.status != 401 && a.status != 403 {
			t.Errorf("%s: status %d", name, a.status)
		}
		if w.mend != "" {
			h.exec(t, w.mend, c.account)
			h.as(t, c, "GET", "/v1/projects", nil).wants(t, 200)
		}
	}
}

// Deletion that a transaction has begun but not committed does not count, and nobody waits for it.
func TestRevocationCountsWhenItIsCommitted(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	c := h.newCaller(t, uuid.Nil, "*")
	h.exec(t, "BEGIN")
	h.exec(t, "UPDATE api_keys SET revoked_at = now() WHERE account_id = $1", c.account)
	h.as(t, c, "GET", "/v1/projects", nil).wants(t, 200)
	h.exec(t, "COMMIT")
	h.as(t, c, "GET", "/v1/projects", nil).refused(t, 401, "unauthenticated")
}

// The keys stay out of the log and of the answers, whatever happens to the request.
func TestKeysAreNeverToldNorLogged(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure, func(c *api.Config, _ *pgxpool.Config) { c.MaxBody = 1 << 20 })
	weak := h.newCaller(t, h.admin.org, "sessions:read")
	f := h.newFamily(t, h.admin)
	h.exec(t, `CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $e$it broke$e$; END';
		CREATE TRIGGER broken BEFORE UPDATE ON projects FOR EACH ROW EXECUTE FUNCTION broken()`)
	var secrets []string
	for _, c := range []caller{h.admin, weak} {
		secrets = append(secrets, c.key, c.key[4:], fmt.Sprintf("%x", mustHash(t, c.key)))
	}
	statuses := map[int]bool{}
	for _, c := range []caller{h.admin, weak} {
		for _, s := range []sample{
			{"GET", "/v1/projects", "", "", 200},
			{"GET", "/v1/projects?nonsense=1", "", "", 400},
			{"GET", "/v1/nothing", "", "", 404},
			{"PUT", "/v1/projects", "", "", 405},
			{"PATCH", "/v1/projects/" + f.project, "application/json", `{"name":"x"}`, 500},
			{"POST", "/v1/projects", "application/json", strings.Repeat(" ", 2<<20), 413},
			{"POST", "/v1/projects", "text/plain", `{}`, 415},
			{"POST", "/v1/sessions/import?projectId=" + f.project, "application/json", `nonsense`, 400},
			{"DELETE", "/v1/projects/" + f.project, "", "", 409},
		} {
			a := h.send(t, c, s)
			statuses[a.status] = true
			for _, secret := range secrets {
				if strings.Contains(string(a.body), secret) || strings.Contains(fmt.Sprint(a.header), secret) {
					t.Errorf("%s %s: the answer holds the key: %v %s", s.method, s.path, a.header, a.body)
				}
			}
		}
	}
	for _, status := range []int{200, 400, 403, 404, 405, 409, 413, 415, 500} {
		if !statuses[status] {
			t.Errorf("there was no %d %s", status, http.StatusText(status))
		}
	}
	log.waitFor(t, "it broke")
	for _, secret := range secrets {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log holds %s: %s", secret, log)
		}
	}
	// What it does hold: who it was.
	if !strings.Contains(log.String(), h.admin.account.String()) {
		t.Error("the log does not say who asked")
	}
}
