package api_test

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Keys, by what they do.

// everywhere is the tables that hold a text anywhere in a row.
func (h *hub) everywhere(t testing.TB, text string) (found []string) {
	t.Helper()
	for name := range h.tables(t) {
		if h.count(t, `SELECT count(*) FROM public."`+name+`" r WHERE position($1 IN r::text) > 0`, text) > 0 {
			found = append(found, name)
		}
	}
	return found
}

// W13: a key is shown once; what is kept is its SHA-256.
func TestW13_AKeyIsShownOnce(t *testing.T) {
	t.Parallel()
	log := &logBuffer{}
	h := newHub(t, log.configure)
	owner := h.newCaller(t, uuid.Nil, "*")
	var shown []string
	k := h.createKey(t, owner, `{"name":"once","scopes":["*"]}`)
	shown = append(shown, k.Key)
	path := "/v1/api-keys/" + k.APIKey.ID
	var rotated shownKey
	h.as(t, owner, "POST", path+"/rotate", nil).wants(t, 201).into(t, &rotated)
	shown = append(shown, rotated.Key)
	var made struct{ OwnerKey string }
	h.do(t, "POST", "/v1/organizations", `{"slug":"o","name":"o"}`).wants(t, 201).into(t, &made)
	shown = append(shown, made.OwnerKey)
	form := regexp.MustCompile(`^hub_[0-9A-Za-z]{49}$`)
	for i, key := range shown {
		if !form.MatchString(key) || slices.Index(shown, key) != i {
			t.Errorf("the key %q", key)
		}
		h.me(t, caller{key: key})
		hash := sha256.Sum256([]byte(key))
		if n := h.count(t, "SELECT count(*) FROM api_keys WHERE key_hash = $1", hash[:]); n != 1 {
			t.Errorf("%d rows have its hash", n)
		}
		for _, secret := range []string{key, key[4:], key[4:47]} {
			if found := h.everywhere(t, secret); found != nil {
				t.Errorf("the key stands in %v", found)
			}
			if strings.Contains(log.String(), secret) {
				t.Error("the key stands in the log")
			}
		}
		if found := h.everywhere(t, fmt.Sprintf("%x", hash)); !slices.Equal(found, []string{"api_keys"}) {
			t.Errorf("its hash stands in %v", found)
		}
	}
	// No other answer shows it, nor its hash.
	for _, a := range []answer{
		h.as(t, owner, "GET", path, nil), h.as(t, owner, "GET", "/v1/api-keys", nil), h.as(t, owner, "PATCH", path, `{"name":"x"}`), h.as(t, owner, "POST", path+"/disable", nil),
		h.as(t, owner, "POST", path+"/enable", nil), h.as(t, caller{key: k.Key}, "GET", "/v1/me", nil), h.as(t, owner, "POST", path+"/revoke", nil),
		h.as(t, owner, "GET", "/v1/audit-logs", nil), h.as(t, owner, "GET", "/v1/audit-logs/export", nil),
	} {
		a.wants(t, 200)
		if strings.Contains(string(a.body), k.Key) || strings.Contains(string(a.body), fmt.Sprintf("%x", mustHash(t, k.Key))) || strings.Contains(string(a.body), "hub_") && !strings.Contains(string(a.body), `"databaseUser":"hub_app"`) {
			t.Errorf("%s", a.body)
		}
	}
}

// A mistyped key is refused without a look-up; one that is in form takes one statement, known or not.
func TestW13_AMistypedKeyCostsNothing(t *testing.T) {
	t.Parallel()
	w := &wire{}
	h := newHub(t, w.configure)
	h.me(t, h.admin)
	mistyped := []byte(h.admin.key)
	for i := 4; i < len(mistyped); i += 3 {
		was := mistyped[i]
		mistyped[i] = map[bool]byte{true: 'a', false: 'b'}[was == 'b']
		w.reset()
		h.as(t, caller{key: string(mistyped)}, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
		if trips, statements := w.counts(); trips+statements != 0 {
			t.Errorf("position %d: %d round trips with %d statements", i, trips, statements)
		}
		mistyped[i] = was
	}
	w.reset()
	h.as(t, caller{key: unknownKey()}, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	if trips, statements := w.counts(); trips != 1 || statements > 2 {
		t.Errorf("an unknown key: %d round trips with %d statements", trips, statements)
	}
}

// A key grants no scope that the key which makes it lacks, also by changing or rotating another.
func TestX01_ScopesCannotBeExceeded(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	narrow := h.newKey(t, owner, "keys:write", "keys:read", "projects:read")
	wide := h.newKey(t, owner, "*")
	create := func(c caller, scopes string) answer {
		return h.as(t, c, "POST", "/v1/api-keys", `{"name":"x","scopes":`+scopes+`}`)
	}
	for good, bad := range map[string]string{
		`["projects:read"]`:              `["projects:write"]`,
		`["keys:write","keys:read"]`:     `["keys:write","keys:read","keys:admin"]`,
		`[]`:                             `["*"]`,
		`["projects:read","keys:read"]`:  `["projects:read","sessions:read"]`,
		`["keys:write","projects:read"]`: `["projects:admin"]`,
	} {
		create(narrow, bad).refused(t, 403, "api_keys_scopes_granted", "/scopes")
		create(narrow, good).wants(t, 201)
		create(owner, bad).wants(t, 201)
	}
	create(narrow, `["platform:*"]`).refused(t, 422, "api_keys_platform_scope_for_admins", "/scopes")

	// By changing: what it has already may stay, what is new may not come.
	path := "/v1/api-keys/" + wide.id.String()
	h.exec(t, "UPDATE api_keys SET scopes = '{sessions:read}' WHERE id = $1", wide.id)
	h.as(t, narrow, "PATCH", path, `{"scopes":["sessions:read","sessions:write"]}`).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	h.as(t, narrow, "PATCH", path, `{"scopes":["*"]}`).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	h.as(t, narrow, "PATCH", "/v1/api-keys/"+narrow.id.String(), `{"scopes":["*"]}`).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	h.as(t, narrow, "PATCH", path, `{"scopes":["sessions:read","projects:read"],"name":"changed"}`).wants(t, 200)
	h.as(t, narrow, "PATCH", path, `{"scopes":["projects:read"]}`).wants(t, 200)
	h.as(t, narrow, "PATCH", path, `{"scopes":["sessions:read"]}`).refused(t, 403, "api_keys_scopes_granted", "/scopes") // it was taken
	// By rotating: the new one would have them.
	h.as(t, owner, "PATCH", path, `{"scopes":["sessions:read"]}`).wants(t, 200)
	h.as(t, narrow, "POST", path+"/rotate", nil).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	h.as(t, owner, "POST", path+"/rotate", nil).wants(t, 201)
	// An admin's other key, without the scope, neither.
	plain := h.newKey(t, h.admin, "*")
	create(plain, `["platform:*"]`).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	h.as(t, plain, "POST", "/v1/api-keys/"+h.admin.id.String()+"/rotate", nil).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	create(h.admin, `["platform:*","*"]`).wants(t, 201)
}

// Whose keys one makes, sees and changes: one's own; an admin those of members and admins; an owner all.
func TestX01_KeysOfOthers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	ranks := []string{"member", "admin", "owner"}
	for rank, level := range ranks {
		actor := h.newMember(t, owner.org, level, "*")
		for target, of := range ranks {
			holder := h.newMember(t, owner.org, of, "*")
			allowed, seen := rank >= 1 && target <= rank, rank >= 1
			name := level + "'s of " + of
			path := "/v1/api-keys/" + holder.id.String()
			for what, send := range map[string]struct {
				okay int
				do   func() answer
			}{
				"create": {201, func() answer {
					return h.as(t, actor, "POST", "/v1/api-keys", `{"accountId":"`+holder.account.String()+`","name":"x","scopes":["projects:read"]}`)
				}},
				"update":  {200, func() answer { return h.as(t, actor, "PATCH", path, `{"name":"`+uuid.NewString()+`"}`) }},
				"disable": {200, func() answer { return h.as(t, actor, "POST", path+"/disable", nil) }},
			} {
				a := send.do()
				switch {
				case allowed:
					a.wants(t, send.okay)
				case !seen && what != "create":
					a.refused(t, 404, "api_key_not_found")
				default:
					a.refused(t, 403, "api_keys_holder_within_level")
				}
			}
			for _, p := range []string{path + "/enable", path + "/rotate", path + "/revoke"} {
				a := h.as(t, actor, "POST", p, nil)
				switch {
				case allowed && strings.HasSuffix(p, "rotate"):
					a.wants(t, 201)
				case allowed:
					a.wants(t, 200)
				case seen:
					a.refused(t, 403, "api_keys_holder_within_level")
				default:
					a.refused(t, 404, "api_key_not_found")
				}
			}
			want := 404
			if seen {
				want = 200
			}
			h.as(t, actor, "GET", path, nil).wants(t, want)
			if got := h.pages(t, actor, "/v1/api-keys?accountId="+holder.account.String(), "id", 50); (len(got) > 0) != seen {
				t.Errorf("%s lists %v", name, got)
			}
		}
		// A member's list is of its own, whatever there is.
		own := h.newKey(t, actor)
		if got := h.pages(t, actor, "/v1/api-keys", "id", 50); level == "member" && !slices.Equal(got, []string{actor.id.String(), own.id.String()}) {
			t.Errorf("a member lists %v", got)
		}
		h.as(t, actor, "POST", "/v1/api-keys/"+own.id.String()+"/revoke", nil).wants(t, 200)
	}
	outsider := h.newCaller(t, uuid.Nil)
	for _, id := range []string{outsider.account.String(), uuid.NewString()} {
		h.as(t, owner, "POST", "/v1/api-keys", `{"accountId":"`+id+`","name":"x","scopes":[]}`).refused(t, 422, "api_keys_member_fkey", "/accountId")
	}
}

// What a key that is limited to projects sees, and what it makes.
func TestX01_LimitedKeys(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	f, other := h.newFamily(t, owner), h.newFamily(t, owner)
	limited := h.limited(t, owner, f.project, "*")
	both := h.createKey(t, owner, map[string]any{"name": "both", "scopes": []string{"*"}, "resources": []string{"project:" + f.project, "project:" + other.project}}).caller(owner)
	if got := h.me(t, limited).APIKey.Resources; !slices.Equal(got, []string{"project:" + f.project}) {
		t.Errorf("%v", got)
	}
	// Nothing outside is there.
	for _, path := range []string{"/v1/projects/" + other.project, "/v1/sessions/" + other.session, "/v1/sessions/" + other.session + "/messages", "/v1/sessions/" + other.session + "/messages/" + other.message,
		"/v1/sessions/" + other.session + "/export"} {
		h.as(t, limited, "GET", path, nil).wants(t, 404)
		h.as(t, both, "GET", path, nil).wants(t, 200)
		mine := strings.NewReplacer(other.project, f.project, other.session, f.session, other.message, f.message).Replace(path)
		h.as(t, limited, "GET", mine, nil).wants(t, 200)
	}
	for path, want := range map[string]int{"/v1/projects": 1, "/v1/sessions": 1 + len(f.held), "/v1/sessions?projectId=" + other.project: 0, "/v1/sessions?projectId=" + f.project: 1 + len(f.held)} {
		if got := h.pages(t, limited, path, "id", 50); len(got) != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	if got := h.pages(t, both, "/v1/projects", "id", 50); len(got) != 2 {
		t.Errorf("%v", got)
	}
	before := h.tables(t)
	for _, s := range []sample{
		{"POST", "/v1/projects", "application/json", `{"slug":"new","name":"n"}`, 0},
		{"POST", "/v1/sessions", "application/json", `{"projectId":"` + other.project + `"}`, 0},
		{"POST", "/v1/sessions/import?projectId=" + other.project, "application/json", export{id: "ses_x"}.String(), 0},
		{"POST", "/v1/sessions/" + other.session + "/messages", "application/json", `{"messages":[{"role":"user"}]}`, 0},
		{"PATCH", "/v1/projects/" + other.project, "application/json", `{"name":"x"}`, 0},
		{"PATCH", "/v1/sessions/" + other.session, "application/json", `{"title":"x"}`, 0},
		{"DELETE", "/v1/sessions/" + other.session, "", "", 0},
		{"DELETE", "/v1/projects/" + other.emptyProject, "", "", 0},
		{"POST", "/v1/api-keys", "application/json", `{"name":"x","scopes":[]}`, 0},
		{"POST", "/v1/api-keys", "application/json", `{"name":"x","scopes":[],"resources":["project:` + other.project + `"]}`, 0},
		{"POST", "/v1/api-keys", "application/json", `{"name":"x","scopes":[],"resources":["project:` + f.project + `","project:` + other.project + `"]}`, 0},
		{"PATCH", "/v1/api-keys/" + limited.id.String(), "application/json", `{"resources":[]}`, 0},
		{"PATCH", "/v1/api-keys/" + limited.id.String(), "application/json", `{"resources":["project:` + other.project + `"]}`, 0},
		{"PATCH", "/v1/api-keys/" + owner.id.String(), "application/json", `{"name":"x"}`, 0},
		{"POST", "/v1/api-keys/" + owner.id.String() + "/revoke", "", "", 0},
		{"POST", "/v1/api-keys/" + f.key + "/rotate", "", "", 0},
	} {
		a := h.send(t, limited, s)
		if a.status != 403 && a.status != 404 && a.status != 422 {
			t.Errorf("%s %s %s: status %d: %s", s.method, s.path, s.body, a.status, a.body)
		}
	}
	h.unchanged(t, before, "what a limited key may not")
	// The twins.
	h.as(t, limited, "POST", "/v1/sessions", `{"projectId":"`+f.project+`","parentId":"`+f.session+`"}`).wants(t, 201)
	h.importFile(t, limited, f.project, export{id: "ses_y"}).wants(t, 201)
	h.as(t, limited, "POST", "/v1/sessions/"+f.session+"/messages", `{"messages":[{"role":"user"}]}`).wants(t, 201)
	h.as(t, limited, "PATCH", "/v1/projects/"+f.project, `{"name":"x"}`).wants(t, 200)
	h.as(t, limited, "DELETE", "/v1/sessions/"+f.session, nil).wants(t, 204)
	narrower := h.createKey(t, both, map[string]any{"name": "n", "scopes": []string{"projects:read"}, "resources": []string{"project:" + other.project}}).caller(owner)
	if got := h.pages(t, narrower, "/v1/projects", "id", 50); !slices.Equal(got, []string{other.project}) {
		t.Errorf("%v", got)
	}
	h.as(t, limited, "POST", "/v1/api-keys/"+limited.id.String()+"/disable", nil).wants(t, 200) // its own, and out
	h.as(t, limited, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")

	// A project that goes takes its keys' reach with it; it is not widened.
	last := h.limited(t, owner, f.emptyProject, "*")
	h.as(t, last, "GET", "/v1/projects/"+f.emptyProject, nil).wants(t, 200)
	h.as(t, owner, "DELETE", "/v1/projects/"+f.emptyProject, nil).wants(t, 204)
	if got := h.pages(t, last, "/v1/projects", "id", 50); len(got) != 0 {
		t.Errorf("%v", got)
	}
	// Resources of another organisation's are no way in.
	stranger := h.newCaller(t, uuid.Nil, "*")
	theirs := h.limited(t, stranger, other.project, "*")
	h.as(t, theirs, "GET", "/v1/projects/"+other.project, nil).refused(t, 404, "project_not_found")
}

func TestKeysAreListedAndChanged(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	worker := h.newMember(t, owner.org, "member", "*")
	ids := []string{owner.id.String(), worker.id.String()}
	for i := range 9 {
		k := h.createKey(t, owner, fmt.Sprintf(`{"name":"k%d","scopes":["projects:read"],"tags":["all","n%d"],"accountId":%q}`, i, i%3, []string{owner.account.String(), worker.account.String()}[i%2]))
		ids = append(ids, k.APIKey.ID)
	}
	for _, limit := range []int{1, 3, 11, 12} {
		if got := h.pages(t, owner, "/v1/api-keys", "id", limit); !slices.Equal(got, ids) {
			t.Errorf("in pages of %d: %v", limit, got)
		}
	}
	for query, want := range map[string]int{"tag=all": 9, "tag=n0": 3, "tag=al": 0, "accountId=" + owner.account.String(): 6, "tag=n1&accountId=" + worker.account.String(): 2, "accountId=" + uuid.NewString(): 0} {
		if got := h.pages(t, owner, "/v1/api-keys?"+query, "id", 2); len(got) != want {
			t.Errorf("%s: %d, want %d", query, len(got), want)
		}
	}
	path := "/v1/api-keys/" + ids[5]
	var k apiKey
	a := h.as(t, owner, "PATCH", path, `{"name":"new","scopes":["*"],"resources":["project:01a20700-0000-7000-8000-000000000001"],"tags":["x:y"],"expiresAt":"2099-01-01T00:00:00.123456Z","metadata":{"_x":{"a":1}}}`, "If-Match", `"1"`).wants(t, 200)
	a.into(t, &k)
	if k.Name != "new" || !slices.Equal(k.Scopes, []string{"*"}) || !slices.Equal(k.Resources, []string{"project:01a20700-0000-7000-8000-000000000001"}) || !slices.Equal(k.Tags, []string{"x:y"}) ||
		k.ExpiresAt == nil || k.ExpiresAt.Format(time.RFC3339Nano) != "2099-01-01T00:00:00.123456Z" || string(k.Metadata) != `{"_x":{"a":1}}` || k.Revision != 2 || a.header.Get("ETag") != `"2"` {
		t.Errorf("%s", a.body)
	}
	wantJSON(t, "the key", h.as(t, owner, "GET", path, nil).wants(t, 200).body, a.body)
	h.as(t, owner, "PATCH", path, `{"expiresAt":null,"resources":[],"tags":[],"scopes":[]}`, "If-Match", `"2"`).wants(t, 200).into(t, &k)
	if k.ExpiresAt != nil || len(k.Resources)+len(k.Tags)+len(k.Scopes) != 0 || k.Name != "new" {
		t.Errorf("%+v", k)
	}
	before := h.tables(t)
	h.as(t, owner, "PATCH", path, `{"name":"x"}`, "If-Match", `"2"`).refused(t, 412, "precondition_failed")
	h.as(t, owner, "PATCH", path, `{"metadata":{"x":{}}}`).refused(t, 422, "api_keys_metadata_check", "/metadata")
	h.as(t, owner, "PATCH", path, `{"expiresAt":"2001-01-01T00:00:00Z"}`).refused(t, 422, "api_keys_expires_after_creation_check", "/expiresAt")
	h.as(t, owner, "POST", "/v1/api-keys", `{"name":"x","scopes":[],"expiresAt":"2001-01-01T00:00:00Z"}`).refused(t, 422, "api_keys_expires_after_creation_check", "/expiresAt")
	for body, pointer := range map[string]string{
		`{"name":""}`: "/name", `{"name":"` + strings.Repeat("x", 201) + `"}`: "/name", `{"name":"\u0000"}`: "/name", `{"scopes":["x"]}`: "/scopes/0", `{"scopes":["projects:read","projects:sing"]}`: "/scopes/1",
		`{"scopes":["projects:read sessions:read"]}`: "/scopes/0", `{"scopes":"*"}`: "/scopes", `{"scopes":null}`: "/scopes", `{"scopes":[null]}`: "/scopes/0",
		`{"resources":["project:x"]}`: "/resources/0", `{"resources":["session:01a20700-0000-7000-8000-000000000001"]}`: "/resources/0", `{"resources":["project:01A20700-0000-7000-8000-000000000001"]}`: "/resources/0",
		`{"tags":["A"]}`: "/tags/0", `{"tags":["a b"]}`: "/tags/0", `{"tags":["` + strings.Repeat("a", 51) + `"]}`: "/tags/0", `{"expiresAt":"tomorrow"}`: "/expiresAt", `{"expiresAt":5}`: "/expiresAt",
		`{"enabled":false}`: "/enabled", `{"accountId":"` + worker.account.String() + `"}`: "/accountId", `{"keyHash":"x"}`: "/keyHash", `{"revokedAt":null}`: "/revokedAt",
	} {
		h.as(t, owner, "PATCH", path, body).refused(t, 400, "invalid_request", pointer)
	}
	h.do(t, "POST", "/v1/api-keys", `{"name":"x","scopes":["platform:read"]}`).refused(t, 403, "api_keys_scopes_granted", "/scopes") // there is only platform:*
	for name, list := range map[string]string{"scopes": `"projects:read"`, "resources": `"project:01a20700-0000-7000-8000-000000000001"`, "tags": `"a"`} {
		most := map[string]int{"scopes": 100, "resources": 100, "tags": 50}[name]
		h.as(t, owner, "PATCH", path, `{"`+name+`":[`+strings.Repeat(list+",", most)+list+`]}`).refused(t, 400, "invalid_request", "/"+name)
	}
	for _, verb := range []string{"", "/revoke", "/rotate", "/enable", "/disable"} {
		method := map[bool]string{true: "GET", false: "POST"}[verb == ""]
		h.as(t, owner, method, "/v1/api-keys/"+uuid.NewString()+verb, nil).refused(t, 404, "api_key_not_found")
		h.as(t, owner, method, "/v1/api-keys/"+h.admin.id.String()+verb, nil).refused(t, 404, "api_key_not_found")
	}
	h.unchanged(t, before, "refused changes of keys")
	h.as(t, owner, "PATCH", path, `{"scopes":[`+strings.Repeat(`"projects:read",`, 99)+`"projects:read"],"tags":[`+strings.Repeat(`"a",`, 49)+`"a"]}`).wants(t, 200)
}

// A key that ends, is disabled, enabled or revoked does so with the next request.
func TestW02_KeysEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	var now time.Time
	h.scan(t, &now, "SELECT clock_timestamp()")
	short := h.createKey(t, owner, map[string]any{"name": "short", "scopes": []string{"*"}, "expiresAt": now.Add(700 * time.Millisecond)}).caller(owner)
	long := h.createKey(t, owner, map[string]any{"name": "long", "scopes": []string{"*"}, "expiresAt": now.Add(time.Hour)}).caller(owner)
	eventually(t, "the key ends", func() bool { return h.as(t, short, "GET", "/v1/me", nil).status == 401 })
	h.as(t, short, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	if n := h.count(t, "SELECT count(*) FROM api_keys WHERE id = $1 AND expires_at <= clock_timestamp() AND revoked_at IS NULL AND enabled", short.id); n != 1 {
		t.Error("it ended before its time")
	}
	h.me(t, long)
	// It can be given more time.
	h.as(t, owner, "PATCH", "/v1/api-keys/"+short.id.String(), map[string]any{"expiresAt": now.Add(time.Hour)}).wants(t, 200)
	h.me(t, short)

	path := "/v1/api-keys/" + long.id.String()
	set := func(verb string, revision int) (k apiKey) {
		t.Helper()
		a := h.as(t, owner, "POST", path+"/"+verb, nil).wants(t, 200)
		a.into(t, &k)
		if k.Revision != revision || a.header.Get("ETag") != fmt.Sprintf(`"%d"`, revision) {
			t.Errorf("%s: %s", verb, a.body)
		}
		return k
	}
	if k := set("disable", 2); k.Enabled {
		t.Error("it is enabled")
	}
	h.as(t, long, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	set("disable", 2) // again: nothing changes
	h.as(t, long, "POST", path+"/enable", nil).refused(t, 401, "unauthenticated")
	if k := set("enable", 3); !k.Enabled {
		t.Error("it is disabled")
	}
	h.me(t, long)
	k := set("revoke", 4)
	if k.RevokedAt == nil {
		t.Errorf("%+v", k)
	}
	h.as(t, long, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	if again := set("revoke", 4); !again.RevokedAt.Equal(*k.RevokedAt) {
		t.Errorf("revoked anew: %v", again.RevokedAt)
	}
	h.as(t, owner, "POST", path+"/disable", nil).refused(t, 409, "api_keys_revoked_for_good")
	h.as(t, owner, "PATCH", path, `{"name":"x"}`).refused(t, 409, "api_keys_revoked_for_good")
	set("enable", 4) // it is
	h.as(t, long, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
}

// The new key works at once, the old one for a grace period that never passes its own end.
func TestRotation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	var now time.Time
	h.scan(t, &now, "SELECT date_trunc('milliseconds', clock_timestamp())")
	hour, minute := now.Add(time.Hour), now.Add(time.Minute)
	for name, w := range map[string]struct {
		expires *time.Time
		body    any
		check   func(old, made, replaced apiKey) bool
		lives   bool // the old one
	}{
		"by default": {nil, nil, func(_, made, replaced apiKey) bool {
			return made.ExpiresAt == nil && replaced.ExpiresAt.Equal(made.CreatedAt.Add(24*time.Hour))
		}, true},
		"empty": {nil, `{}`, func(_, made, replaced apiKey) bool {
			return made.ExpiresAt == nil && replaced.ExpiresAt.Equal(made.CreatedAt.Add(24*time.Hour))
		}, true},
		"a minute": {nil, `{"graceSeconds":60}`, func(_, made, replaced apiKey) bool {
			return made.ExpiresAt == nil && replaced.ExpiresAt.Equal(made.CreatedAt.Add(time.Minute))
		}, true},
		"at once": {nil, `{"graceSeconds":0}`, func(_, made, replaced apiKey) bool {
			return made.ExpiresAt == nil && replaced.ExpiresAt.Equal(made.CreatedAt)
		}, false},
		"never past its end": {&minute, `{"graceSeconds":3600}`, func(old, made, replaced apiKey) bool {
			return replaced.ExpiresAt.Equal(minute) && made.ExpiresAt.Sub(made.CreatedAt) == minute.Sub(old.CreatedAt)
		}, true},
		"before its end": {&hour, `{"graceSeconds":60}`, func(old, made, replaced apiKey) bool {
			return replaced.ExpiresAt.Equal(made.CreatedAt.Add(time.Minute)) && made.ExpiresAt.Sub(made.CreatedAt) == hour.Sub(old.CreatedAt)
		}, true},
		"with an end of its own": {&hour, map[string]any{"expiresAt": minute}, func(_, made, replaced apiKey) bool {
			return made.ExpiresAt.Equal(minute) && replaced.ExpiresAt.Equal(hour)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			body := map[string]any{"name": name, "scopes": []string{"projects:read"}, "resources": []string{"project:01a20700-0000-7000-8000-000000000001"}, "tags": []string{"t"}, "metadata": map[string]any{"_x": map[string]any{}}}
			if w.expires != nil {
				body["expiresAt"] = *w.expires
			}
			old := h.createKey(t, owner, body)
			path := "/v1/api-keys/" + old.APIKey.ID
			a := h.as(t, owner, "POST", path+"/rotate", w.body).wants(t, 201)
			var made shownKey
			a.into(t, &made)
			if a.header.Get("Location") != "/v1/api-keys/"+made.APIKey.ID || a.header.Get("ETag") != `"1"` || made.Key == old.Key || value(made.Replaced.RotatedToID) != made.APIKey.ID || made.Replaced.ID != old.APIKey.ID ||
				made.Replaced.Revision != 2 || made.APIKey.RotatedToID != nil {
				t.Errorf("%v %s", a.header, a.body)
			}
			n, o := made.APIKey, old.APIKey
			if n.Name != o.Name || n.AccountID != o.AccountID || !slices.Equal(n.Scopes, o.Scopes) || !slices.Equal(n.Resources, o.Resources) || !slices.Equal(n.Tags, o.Tags) || string(n.Metadata) != string(o.Metadata) {
				t.Errorf("%s", a.body)
			}
			if !w.check(old.APIKey, made.APIKey, made.Replaced) {
				t.Errorf("%s", a.body)
			}
			h.me(t, made.caller(owner))
			if a := h.as(t, old.caller(owner), "GET", "/v1/me", nil); (a.status == 200) != w.lives {
				t.Errorf("the old one: status %d", a.status)
			}
			// Once; its end only comes nearer.
			h.as(t, owner, "POST", path+"/rotate", nil).refused(t, 409, "api_keys_rotated_once")
			h.as(t, owner, "PATCH", path, `{"expiresAt":null}`).refused(t, 409, "api_keys_grace_only_shrinks", "/expiresAt")
			h.as(t, owner, "PATCH", path, `{"expiresAt":"2099-01-01T00:00:00Z"}`).refused(t, 409, "api_keys_grace_only_shrinks", "/expiresAt")
			h.as(t, owner, "PATCH", path, `{"name":"old"}`).wants(t, 200)
			h.as(t, owner, "POST", path+"/revoke", nil).wants(t, 200)
			h.as(t, old.caller(owner), "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
			h.me(t, made.caller(owner))
		})
	}
	// A key may rotate itself, and goes on with the new one.
	k := h.createKey(t, owner, `{"name":"self","scopes":["keys:write"]}`)
	var next shownKey
	h.as(t, k.caller(owner), "POST", "/v1/api-keys/"+k.APIKey.ID+"/rotate", `{"graceSeconds":0}`).wants(t, 201).into(t, &next)
	h.as(t, k.caller(owner), "POST", "/v1/api-keys/"+next.APIKey.ID+"/rotate", nil).refused(t, 401, "unauthenticated")
	h.as(t, next.caller(owner), "POST", "/v1/api-keys/"+next.APIKey.ID+"/rotate", nil).wants(t, 201)
	// A revoked one not.
	lost := h.newKey(t, owner, "*")
	h.as(t, owner, "POST", "/v1/api-keys/"+lost.id.String()+"/revoke", nil).wants(t, 200)
	before := h.tables(t)
	h.as(t, owner, "POST", "/v1/api-keys/"+lost.id.String()+"/rotate", nil).refused(t, 409, "api_keys_revoked_for_good")
	for body, pointer := range map[string]string{`{"graceSeconds":-1}`: "/graceSeconds", `{"graceSeconds":2592001}`: "/graceSeconds", `{"graceSeconds":1.5}`: "/graceSeconds", `{"expiresAt":"x"}`: "/expiresAt", `{"name":"x"}`: "/name"} {
		h.as(t, owner, "POST", "/v1/api-keys/"+owner.id.String()+"/rotate", body).refused(t, 400, "invalid_request", pointer)
	}
	h.as(t, owner, "POST", "/v1/api-keys/"+owner.id.String()+"/rotate", `{"expiresAt":"2001-01-01T00:00:00Z"}`).refused(t, 422, "api_keys_expires_after_creation_check", "/expiresAt")
	h.unchanged(t, before, "refused rotations")
	// Of many rotations at once one goes through.
	contested := h.newKey(t, owner, "*")
	if counts := h.race(t, 8, func(int) int {
		return h.as(t, owner, "POST", "/v1/api-keys/"+contested.id.String()+"/rotate", nil).status
	}); counts[201] != 1 || counts[409] != 7 {
		t.Errorf("%v", counts)
	}
	if n := h.count(t, "SELECT count(*) FROM api_keys WHERE account_id = $1 AND name = 'test'", owner.account); n != 4 { // owner's, lost, contested, and what followed
		t.Errorf("%d keys", n)
	}
}

// When a key was used last is written in batches, at most once a minute, and changes nothing else of it.
func TestKeysAreLastUsed(t *testing.T) {
	t.Parallel()
	w := &wire{}
	h := newHub(t, w.configure)
	c, idle := h.newCaller(t, uuid.Nil, "*"), h.newCaller(t, uuid.Nil, "*")
	used := func(c caller) (k apiKey) {
		t.Helper()
		h.as(t, c, "GET", "/v1/api-keys/"+c.id.String(), nil).wants(t, 200).into(t, &k)
		return k
	}
	h.as(t, c, "GET", "/v1/me", nil).wants(t, 200)
	if k := used(c); k.LastUsedAt != nil {
		t.Errorf("written at once: %v", k.LastUsedAt)
	}
	audited := h.count(t, "SELECT count(*) FROM audit_logs")
	w.reset()
	if err := h.db.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if trips, statements := w.counts(); statements != 1 || trips > 2 {
		t.Errorf("%d round trips with %d statements", trips, statements)
	}
	first := used(c)
	if first.LastUsedAt == nil || first.Revision != 1 || h.count(t, "SELECT count(*) FROM audit_logs") != audited {
		t.Errorf("%+v", first)
	}
	if n := h.count(t, "SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL AND last_used_at BETWEEN now() - interval '10 minutes' AND clock_timestamp()"); n != 1 {
		t.Errorf("%d keys have been used", n)
	}
	h.as(t, c, "PATCH", "/v1/api-keys/"+c.id.String(), `{}`, "If-Match", `"1"`).wants(t, 200) // the ETag still holds
	// Within the minute it stays.
	if err := h.db.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := used(c); !again.LastUsedAt.Equal(*first.LastUsedAt) {
		t.Errorf("%v, before %v", again.LastUsedAt, first.LastUsedAt)
	}
	h.exec(t, "UPDATE api_keys SET last_used_at = last_used_at - interval '2 minutes' WHERE id = $1", c.id)
	if err := h.db.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := used(c); again.LastUsedAt.Before(*first.LastUsedAt) {
		t.Errorf("%v, before %v", again.LastUsedAt, first.LastUsedAt)
	}
	// Nothing to write is no statement. Who is refused has used nothing.
	if err := h.db.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.reset()
	if err := h.db.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if trips, statements := w.counts(); trips+statements != 0 {
		t.Errorf("%d round trips with %d statements", trips, statements)
	}
	h.exec(t, "UPDATE api_keys SET enabled = false WHERE id = $1", idle.id)
	h.as(t, idle, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	w.reset()
	if err := h.db.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, statements := w.counts(); statements != 0 {
		t.Error("a refused key was noted as used")
	}
}

// What cannot be written is kept for the next time.
func TestKeysAreLastUsedAlsoAfterAFailure(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.me(t, h.admin)
	h.exec(t, "REVOKE EXECUTE ON FUNCTION record_key_uses(uuid[], uuid[], timestamptz[]) FROM hub_app")
	if err := h.db.WriteUses(t.Context()); err == nil {
		t.Fatal("it was written")
	}
	h.exec(t, "GRANT EXECUTE ON FUNCTION record_key_uses(uuid[], uuid[], timestamptz[]) TO hub_app")
	if err := h.db.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := h.count(t, "SELECT count(*) FROM api_keys WHERE last_used_at IS NOT NULL"); n != 1 {
		t.Error("the use was lost")
	}
}

// Audited, revision and updated_at: what a request without change leaves alone.
func TestNothingChangesByReading(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	f := h.newFamily(t, owner)
	before := h.tables(t)
	for _, op := range operations(t) {
		if s, ok := f.sampleOf(t, op); ok && op.method == "GET" && !slices.Contains(op.scopes, "platform:*") {
			h.send(t, owner, s).wants(t, s.status)
		}
	}
	h.unchanged(t, before, "reading")
}

// limited is a key of the caller's that is limited to a project, made by the API.
func (h *hub) limited(t testing.TB, c caller, project string, scopes ...string) caller {
	t.Helper()
	k := h.createKey(t, c, map[string]any{"name": "limited", "scopes": scopes, "resources": []string{"project:" + project}})
	return caller{key: k.Key, id: uuid.MustParse(k.APIKey.ID), org: c.org, account: c.account}
}

// Whoever holds it, a key that is limited to projects is a member's for the organisation as a whole.
func TestX01_LimitedKeysRankAsMembers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for _, op := range operations(t) {
		if op.public {
			continue
		}
		c := h.newCaller(t, uuid.Nil, "*", "platform:*")
		f := h.newFamily(t, c)
		s, ok := f.sampleOf(t, op)
		if !ok {
			continue
		}
		limited := h.limited(t, c, f.project, "*", "platform:*")
		switch {
		case slices.Contains(op.scopes, "platform:*"):
			h.send(t, limited, s).refused(t, 403, "insufficient_scope")
		case op.level != "member":
			h.send(t, limited, s).refused(t, 403, "insufficient_level")
		}
	}
	// It sees its holder's keys only, and its own organisation, as a member does.
	owner := h.newCaller(t, uuid.Nil, "*", "platform:*")
	f := h.newFamily(t, owner)
	worker := h.newMember(t, owner.org, "member", "*")
	limited := h.limited(t, owner, f.project, "*", "platform:*")
	h.as(t, limited, "GET", "/v1/api-keys/"+worker.id.String(), nil).refused(t, 404, "api_key_not_found")
	h.as(t, limited, "GET", "/v1/accounts/"+h.admin.account.String(), nil).refused(t, 404, "account_not_found")
	if got := h.pages(t, limited, "/v1/organizations", "id", 50); !slices.Equal(got, []string{owner.org.String()}) {
		t.Errorf("%v", got)
	}
}

// What it does not see is not there for it, also where it only refers to it.
func TestX01_LimitedKeysReferToWhatTheySee(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	f, other := h.newFamily(t, owner), h.newFamily(t, owner)
	limited := h.limited(t, owner, f.project, "*")
	for _, id := range []string{other.session, uuid.NewString()} {
		h.as(t, limited, "POST", "/v1/sessions", `{"projectId":"`+f.project+`","parentId":"`+id+`"}`).refused(t, 422, "sessions_parent_id_fkey", "/parentId")
		h.as(t, limited, "GET", "/v1/projects", nil, "Hub-Session", id).refused(t, 422, "acting_session_not_found", "header:Hub-Session")
	}
	h.as(t, limited, "POST", "/v1/sessions", `{"projectId":"`+f.project+`","parentId":"`+f.session+`"}`, "Hub-Session", f.session).wants(t, 201)
}

// A time that JSON cannot say is refused before it is there: it would break every list that it stands in.
func TestKeysEndBeforeTheYear9999(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/api-keys/" + h.createKey(t, h.admin, `{"name":"x","scopes":[],"expiresAt":"9999-12-30T23:59:59.999999Z"}`).APIKey.ID
	for _, end := range []string{"9999-12-31T00:00:00Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-12:00", "9999-12-31T23:59:59.9999999-23:59"} {
		h.do(t, "POST", "/v1/api-keys", `{"name":"x","scopes":[],"expiresAt":"`+end+`"}`).refused(t, 422, "api_keys_expires_in_reach_check", "/expiresAt")
		h.do(t, "PATCH", path, `{"expiresAt":"`+end+`"}`).refused(t, 422, "api_keys_expires_in_reach_check", "/expiresAt")
		h.do(t, "POST", path+"/rotate", `{"expiresAt":"`+end+`"}`).refused(t, 422, "api_keys_expires_in_reach_check", "/expiresAt")
	}
	h.do(t, "POST", path+"/rotate", nil).wants(t, 201) // which would live as long, and no longer than there is time
	h.do(t, "GET", "/v1/api-keys", nil).wants(t, 200)
	h.do(t, "GET", "/v1/audit-logs", nil).wants(t, 200)
}

// Times that RFC 3339 knows and Go does not.
func TestLeapSecondsAreRefused(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	const at = "2099-01-01T23:59:60Z"
	h.do(t, "POST", "/v1/api-keys", `{"name":"x","scopes":[],"expiresAt":"`+at+`"}`).refused(t, 400, "invalid_request", "/expiresAt")
	h.do(t, "PATCH", "/v1/api-keys/"+f.key, `{"expiresAt":"`+at+`"}`).refused(t, 400, "invalid_request", "/expiresAt")
	h.do(t, "POST", "/v1/api-keys/"+f.oldKey+"/rotate", `{"expiresAt":"`+at+`"}`).refused(t, 400, "invalid_request", "/expiresAt")
	h.do(t, "GET", "/v1/audit-logs?since="+at, nil).refused(t, 400, "invalid_request", "query:since")
}
