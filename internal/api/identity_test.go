package api_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Accounts, organisations and members, by what they do.

type account struct {
	ID, Kind, AccessLevel, Status, DisplayName string
	HomeOrganizationID, Email                  *string
	Data, Metadata                             json.RawMessage
	Revision                                   int
}

type organization struct {
	ID, Slug, Name, OwnerID string
	DeletedAt               *time.Time
	Data, Metadata          json.RawMessage
	Revision                int
}

type apiKey struct {
	ID, AccountID, Name              string
	Scopes, Resources, Tags          []string
	Enabled                          bool
	CreatedAt, UpdatedAt             time.Time
	ExpiresAt, RevokedAt, LastUsedAt *time.Time
	RotatedToID                      *string
	Revision                         int
	Metadata                         json.RawMessage
}

// shownKey is the answer that shows a key, and of a rotation the one that it replaces.
type shownKey struct {
	APIKey, Replaced apiKey
	Key              string
}

func (k shownKey) caller(c caller) caller {
	return caller{key: k.Key, id: uuid.MustParse(k.APIKey.ID), org: c.org, account: uuid.MustParse(k.APIKey.AccountID)}
}

type me struct {
	Account         account
	Organization    organization
	MembershipLevel string
	APIKey          apiKey
}

func (h *hub) me(t testing.TB, c caller) (m me) {
	t.Helper()
	h.as(t, c, "GET", "/v1/me", nil).wants(t, 200).into(t, &m)
	return m
}

func (h *hub) createKey(t testing.TB, c caller, body any) (k shownKey) {
	t.Helper()
	h.as(t, c, "POST", "/v1/api-keys", body).wants(t, 201).into(t, &k)
	return k
}

func (h *hub) newAccount(t testing.TB, c caller, body string) (a account) {
	t.Helper()
	h.as(t, c, "POST", "/v1/accounts", body).wants(t, 201).into(t, &a)
	return a
}

func TestX01_AnAccountAndItsFirstKey(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	a := h.as(t, owner, "POST", "/v1/accounts", `{"kind":"llm","displayName":"glm-5.1","email":"glm-5.1@alk.dev","membershipLevel":"admin","data":{"a":["\u0000"]},"metadata":{"_x":{"y":1}}}`).wants(t, 201)
	var made, got account
	a.into(t, &made)
	if a.header.Get("ETag") != `"1"` || a.header.Get("Location") != "/v1/accounts/"+made.ID || made.Revision != 1 {
		t.Errorf("%v %s", a.header, a.body)
	}
	if made.Kind != "llm" || made.AccessLevel != "member" || made.Status != "active" || made.DisplayName != "glm-5.1" || value(made.Email) != "glm-5.1@alk.dev" ||
		value(made.HomeOrganizationID) != owner.org.String() || string(made.Data) != `{"a":["\u0000"]}` || string(made.Metadata) != `{"_x":{"y":1}}` {
		t.Errorf("%s", a.body)
	}
	b := h.as(t, owner, "GET", a.header.Get("Location"), nil).wants(t, 200)
	wantJSON(t, "the account", b.body, a.body)
	if b.header.Get("ETag") != `"1"` {
		t.Errorf("%v", b.header)
	}
	b.into(t, &got)

	// Its first key, which it can use at once, and says who it is.
	k := h.createKey(t, owner, `{"accountId":"`+made.ID+`","name":"runner","scopes":["projects:read"],"tags":["a/b"],"metadata":{"_x":{}}}`)
	m := h.me(t, k.caller(owner))
	if m.Account.ID != made.ID || m.Organization.ID != owner.org.String() || m.Organization.OwnerID != owner.account.String() || m.MembershipLevel != "admin" ||
		m.APIKey.ID != k.APIKey.ID || m.APIKey.Name != "runner" || !slices.Equal(m.APIKey.Scopes, []string{"projects:read"}) || !slices.Equal(m.APIKey.Tags, []string{"a/b"}) || !m.APIKey.Enabled {
		t.Errorf("%+v", m)
	}
	h.as(t, k.caller(owner), "GET", "/v1/projects", nil).wants(t, 200)

	// The defaults.
	plain := h.newAccount(t, owner, `{"kind":"human","displayName":"Ann"}`)
	var member struct{ MembershipLevel string }
	h.as(t, owner, "GET", "/v1/members/"+plain.ID, nil).wants(t, 200).into(t, &member)
	if member.MembershipLevel != "member" || plain.Email != nil || string(plain.Data) != "{}" || string(plain.Metadata) != "{}" {
		t.Errorf("%+v, %s", plain, member.MembershipLevel)
	}
	// Nobody gives a level above their own.
	admin := h.newMember(t, owner.org, "admin", "*")
	before := h.tables(t)
	h.as(t, admin, "POST", "/v1/accounts", `{"kind":"human","displayName":"x","membershipLevel":"owner"}`).refused(t, 403, "organization_members_level_granted")
	for body, pointers := range map[string][]string{
		`{"kind":"system","displayName":"x"}`:                                                    {"/kind"},
		`{"kind":"human","displayName":""}`:                                                      {"/displayName"},
		`{"kind":"human","displayName":"` + strings.Repeat("x", 201) + `"}`:                      {"/displayName"},
		`{"kind":"human","displayName":"\u0000"}`:                                                {"/displayName"},
		`{"kind":"human","displayName":"\ud83d"}`:                                                {"/displayName"},
		`{"kind":"human","displayName":"x","accessLevel":"admin"}`:                               {"/accessLevel"},
		`{"kind":"human","displayName":"x","status":"active"}`:                                   {"/status"},
		`{"kind":"human","displayName":"x","id":"` + made.ID + `"}`:                              {"/id"},
		`{"kind":"human","displayName":"x","membershipLevel":"god"}`:                             {"/membershipLevel"},
		`{"kind":"human","displayName":"x","email":null}`:                                        {"/email"},
		`{"kind":"human","displayName":"x","homeOrganizationId":"` + h.admin.org.String() + `"}`: {"/homeOrganizationId"},
		`{}`: {"/displayName", "/kind"},
	} {
		h.as(t, owner, "POST", "/v1/accounts", body).refused(t, 400, "invalid_request", pointers...)
	}
	h.as(t, owner, "POST", "/v1/accounts", `{"kind":"human","displayName":"x","metadata":{"x":{}}}`).refused(t, 422, "accounts_metadata_check", "/metadata")
	h.unchanged(t, before, "refused accounts")
	h.as(t, owner, "POST", "/v1/accounts", `{"kind":"human","displayName":"`+strings.Repeat("é", 200)+`","membershipLevel":"owner"}`).wants(t, 201)
}

func TestS03_EmailDomains(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	h.exec(t, "INSERT INTO reserved_email_domains (domain) VALUES ('bots.example')")
	body := func(kind, email string) string {
		return fmt.Sprintf(`{"kind":%q,"displayName":"x","email":%q}`, kind, email)
	}
	for _, w := range []struct{ kind, good, bad string }{
		{"human", "ann@example.com", "ann@alk.dev"},
		{"human", "bob@notalk.dev", "bob@sub.alk.dev"},
		{"human", "eve@alk.dev.example.com", "eve@ALK.dev"},
		{"human", "kim@example", "kim@bots.example"},
		{"llm", "glm@alk.dev", "glm@example.com"},
		{"llm", "glm@Sub.Alk.Dev", "glm@notalk.dev"},
		{"service", "ci@bots.example", "ci@alk.dev.example.com"},
		{"service", "cd@deep.below.bots.example", "cd@example"},
	} {
		h.as(t, owner, "POST", "/v1/accounts", body(w.kind, w.bad)).refused(t, 422, "accounts_email_domain", "/email")
		id := h.newAccount(t, owner, body(w.kind, w.good)).ID
		// The same when it changes.
		h.as(t, owner, "PATCH", "/v1/accounts/"+id, `{"email":"`+w.bad+`"}`).refused(t, 422, "accounts_email_domain", "/email")
		h.as(t, owner, "PATCH", "/v1/accounts/"+id, `{"email":"new-`+w.good+`"}`).wants(t, 200)
		var a account
		h.as(t, owner, "PATCH", "/v1/accounts/"+id, `{"email":null}`).wants(t, 200).into(t, &a)
		if a.Email != nil {
			t.Errorf("the address is still %s", *a.Email)
		}
		h.as(t, owner, "PATCH", "/v1/accounts/"+id, `{"email":"`+w.good+`"}`).wants(t, 200)
		// One account per address, whatever its case, also in other organisations.
		for _, c := range []caller{owner, h.admin} {
			h.as(t, c, "POST", "/v1/accounts", body(w.kind, strings.ToUpper(w.good))).refused(t, 409, "accounts_email_key", "/email")
		}
	}
	for _, email := range []string{"", "x", "@", "a@", "@b", "a b@example.com", "a@b c", "a@b@c"} {
		h.as(t, owner, "POST", "/v1/accounts", body("human", email)).refused(t, 422, "accounts_email_shape_check", "/email")
	}
	h.as(t, owner, "POST", "/v1/accounts", body("human", strings.Repeat("x", 243)+"@example.com")).refused(t, 400, "invalid_request", "/email")
	h.as(t, owner, "POST", "/v1/accounts", body("human", strings.Repeat("x", 242)+"@example.com")).wants(t, 201)
}

func TestS01_AccessLevelsByPlatformAdminsAlone(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	worker := h.newMember(t, owner.org, "member", "*")
	path := "/v1/accounts/" + worker.account.String()
	access := func() (level string) {
		t.Helper()
		h.scan(t, &level, "SELECT access_level FROM accounts WHERE id = $1", worker.account)
		return level
	}
	for _, c := range []caller{owner, worker, h.newKey(t, h.admin, "*")} { // the last one's account is an admin's, the key is not
		if a := h.as(t, c, "PATCH", path, `{"accessLevel":"admin"}`); c.org == h.admin.org {
			a.refused(t, 404, "account_not_found")
		} else {
			a.refused(t, 403, "accounts_access_level_by_platform_admin", "/accessLevel")
		}
		if access() != "member" {
			t.Fatal("it is an admin")
		}
	}
	h.as(t, owner, "PATCH", path, `{"accessLevel":"member"}`).wants(t, 200) // what it is already
	h.do(t, "PATCH", path, `{"accessLevel":"owner"}`).refused(t, 400, "invalid_request", "/accessLevel")
	// Nobody's own, in neither direction.
	own := "/v1/accounts/" + h.admin.account.String()
	h.do(t, "PATCH", own, `{"accessLevel":"member"}`).refused(t, 403, "accounts_level_and_status_not_own")
	h.do(t, "PATCH", own, `{"accessLevel":"admin","displayName":"still admin"}`).wants(t, 200)

	// platform:* is for admin accounts, whoever makes the key, and only as long as they are.
	const platform = `{"accountId":"ID","name":"p","scopes":["platform:*","*"]}`
	withID := strings.ReplaceAll(platform, "ID", worker.account.String())
	h.as(t, owner, "POST", "/v1/api-keys", withID).refused(t, 422, "api_keys_platform_scope_for_admins", "/scopes")
	if _, err := h.owner.Exec(t.Context(), "UPDATE api_keys SET scopes = '{platform:*}' WHERE id = $1", worker.id); err == nil || !strings.Contains(err.Error(), "platform:* is for keys of admin accounts") {
		t.Errorf("by SQL: %v", err)
	}
	h.do(t, "PATCH", path, `{"accessLevel":"admin"}`).wants(t, 200)
	if access() != "admin" {
		t.Fatal("it is no admin")
	}
	h.as(t, owner, "POST", "/v1/api-keys", withID).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	h.as(t, worker, "POST", "/v1/api-keys", withID).refused(t, 403, "api_keys_scopes_granted", "/scopes")
	second := h.newKey(t, worker, "platform:*")
	other := h.newCaller(t, uuid.Nil)
	suspend := func() answer { return h.as(t, second, "POST", "/v1/accounts/"+other.account.String()+"/suspend", nil) }
	suspend().wants(t, 200)
	h.do(t, "PATCH", path, `{"accessLevel":"member"}`).wants(t, 200)
	suspend().refused(t, 403, "insufficient_scope")
	h.do(t, "PATCH", path, `{"accessLevel":"admin"}`).wants(t, 200)
	suspend().wants(t, 200)
}

func TestS04_SearchByDisplayName(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner, stranger := h.newCaller(t, uuid.Nil, "*"), h.newCaller(t, uuid.Nil, "*")
	h.exec(t, "UPDATE accounts SET display_name = 'owner' WHERE kind <> 'system'")
	for _, name := range []string{"John Smith", "Johanna Smithers", "Jo", "Smith & Sons", "glm-5.1", "glm-5.2", "100%", "a_b", "axb", `back\slash`, "Żółw", "李小龍", "it's"} {
		h.newAccount(t, owner, fmt.Sprintf(`{"kind":"human","displayName":%q}`, name))
		h.newAccount(t, stranger, fmt.Sprintf(`{"kind":"human","displayName":%q}`, name+" theirs"))
	}
	find := func(c caller, q string) (names []string) {
		t.Helper()
		var list struct{ Items []account }
		h.as(t, c, "GET", "/v1/accounts/search?q="+q, nil).wants(t, 200).into(t, &list)
		for _, a := range list.Items {
			names = append(names, a.DisplayName)
		}
		return names
	}
	for q, want := range map[string][]string{
		"john%20smith": {"John Smith"}, "SMITH": {"John Smith", "Smith & Sons"}, "jon%20smit": {"John Smith"}, "glm": {"glm-5.1", "glm-5.2"}, "%25": {"100%"}, "a_b": {"a_b"}, "_": {"a_b"},
		`k%5Cs`: {`back\slash`}, "%C3%B3%C5%82": {"Żółw"}, "%E6%9D%8E": {"李小龍"}, "it's": {"it's"}, "nobody": nil, "theirs": nil,
	} {
		got := find(owner, q)
		for _, name := range want {
			if !slices.Contains(got, name) {
				t.Errorf("%s finds %q, not %s", q, got, name)
			}
		}
		for _, name := range got {
			if strings.Contains(name, "theirs") || len(want) == 0 {
				t.Errorf("%s finds %q", q, got)
			}
		}
	}
	// The best first, no more than asked for.
	if got := find(owner, "John%20Smith"); got[0] != "John Smith" {
		t.Errorf("%q", got)
	}
	if got := find(owner, "smith&limit=1"); len(got) != 1 {
		t.Errorf("%q", got)
	}
	for _, query := range []string{"", "?q=", "?q=" + strings.Repeat("x", 201), "?q=%00", "?q=%ff"} {
		h.as(t, owner, "GET", "/v1/accounts/search"+query, nil).refused(t, 400, "invalid_request", "query:q")
	}
	h.as(t, owner, "GET", "/v1/accounts/search?q=x&limit=0", nil).refused(t, 400, "invalid_request", "query:limit")
	h.as(t, owner, "GET", "/v1/accounts/search?q="+strings.Repeat("x", 200), nil).wants(t, 200)
	// Who left is not found any more; a platform admin finds its organisation's, too.
	id := h.newAccount(t, owner, `{"kind":"human","displayName":"Zebulon"}`).ID
	if len(find(owner, "zebulon")) != 1 || len(find(h.admin, "zebulon")) != 0 {
		t.Error("Zebulon")
	}
	h.as(t, owner, "DELETE", "/v1/members/"+id, nil).wants(t, 204)
	if got := find(owner, "zebulon"); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestX01_ProfilesAreChangedByTheirManagers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	admin, member, worker := h.newMember(t, owner.org, "admin", "*"), h.newMember(t, owner.org, "member", "*"), h.newMember(t, owner.org, "member", "*")
	path := "/v1/accounts/" + worker.account.String()
	revision := 1
	for _, c := range []caller{worker, admin, owner, h.admin} {
		var a account
		b := h.as(t, c, "PATCH", path, `{"displayName":"`+c.id.String()+`","data":{"by":"`+c.id.String()+`"},"metadata":{"_x":{"by":1}}}`, "If-Match", fmt.Sprintf(`"%d"`, revision)).wants(t, 200)
		b.into(t, &a)
		revision++
		if a.DisplayName != c.id.String() || a.Revision != revision || b.header.Get("ETag") != fmt.Sprintf(`"%d"`, revision) {
			t.Errorf("%s", b.body)
		}
	}
	before := h.tables(t)
	for _, body := range []string{`{"displayName":"x"}`, `{"email":"x@alk.dev"}`, `{"data":{"x":1}}`, `{"metadata":{"_y":{}}}`} {
		h.as(t, member, "PATCH", path, body).refused(t, 403, "accounts_profile_by_its_managers")
	}
	h.as(t, member, "PATCH", path, `{}`).wants(t, 200) // nothing
	for _, id := range []string{uuid.NewString(), "00000000-0000-7000-8000-000000000001"} {
		h.do(t, "PATCH", "/v1/accounts/"+id, `{"displayName":"x"}`).refused(t, 404, "account_not_found")
		h.do(t, "GET", "/v1/accounts/"+id, nil).refused(t, 404, "account_not_found")
	}
	h.as(t, owner, "PATCH", path, `{"displayName":"x"}`, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.as(t, owner, "PATCH", path, `{"displayName":null}`).refused(t, 400, "invalid_request", "/displayName")
	h.as(t, owner, "PATCH", path, `{"kind":"human"}`).refused(t, 400, "invalid_request", "/kind")
	h.unchanged(t, before, "refused profiles")
	var a account
	h.as(t, owner, "PATCH", path, `{"data":{"by":null,"a":[1]},"metadata":{"_x":null}}`).wants(t, 200).into(t, &a)
	if string(a.Data) != `{"a":[1]}` || string(a.Metadata) != `{}` {
		t.Errorf("%s %s", a.Data, a.Metadata)
	}

	// Who has left is still its home's to see and to change, and nobody else's; the list is of members.
	h.as(t, owner, "DELETE", "/v1/members/"+worker.account.String(), nil).wants(t, 204)
	h.as(t, admin, "PATCH", path, `{"displayName":"gone"}`).wants(t, 200)
	h.as(t, h.newCaller(t, uuid.Nil, "*"), "GET", path, nil).refused(t, 404, "account_not_found")
	if ids := h.pages(t, owner, "/v1/accounts", "id", 50); slices.Contains(ids, worker.account.String()) || len(ids) != 3 {
		t.Errorf("%v", ids)
	}
}

func TestListAccountsAndMembers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	ids := []string{owner.account.String()}
	for i := range 11 {
		kind, level := []string{"human", "llm", "service"}[i%3], []string{"member", "admin", "owner", "member"}[i%4]
		ids = append(ids, h.newAccount(t, owner, fmt.Sprintf(`{"kind":%q,"displayName":"%d","membershipLevel":%q}`, kind, i, level)).ID)
	}
	h.do(t, "POST", "/v1/accounts/"+ids[3]+"/suspend", nil).wants(t, 200)
	slices.Sort(ids)
	for _, limit := range []int{1, 2, 5, 11, 12, 200} {
		for path, field := range map[string]string{"/v1/accounts": "id", "/v1/members": "accountId"} {
			if got := h.pages(t, owner, path, field, limit); !slices.Equal(got, ids) {
				t.Errorf("%s in pages of %d: %v", path, limit, got)
			}
		}
	}
	for path, want := range map[string]int{
		"/v1/accounts?kind=human": 4, "/v1/accounts?kind=llm": 5, "/v1/accounts?kind=service": 3, "/v1/accounts?status=suspended": 1, "/v1/accounts?status=active": 11, "/v1/accounts?status=deactivated": 0,
		"/v1/accounts?status=suspended&kind=service": 1, "/v1/accounts?status=suspended&kind=human": 0,
		"/v1/members?membershipLevel=owner": 4, "/v1/members?membershipLevel=admin": 3, "/v1/members?membershipLevel=member": 5,
	} {
		field := "id"
		if strings.Contains(path, "members") {
			field = "accountId"
		}
		if got := h.pages(t, owner, path, field, 2); len(got) != want {
			t.Errorf("%s: %d, want %d", path, len(got), want)
		}
	}
	// A cursor belongs to its list and its filters.
	cursor := h.page(t, owner, "/v1/accounts?limit=1", "id").cursor
	for _, path := range []string{"/v1/accounts?kind=human&", "/v1/members?", "/v1/organizations?", "/v1/api-keys?", "/v1/audit-logs?"} {
		h.as(t, owner, "GET", path+"cursor="+cursor, nil).refused(t, 400, "invalid_cursor", "query:cursor")
	}
	for path, name := range map[string]string{"/v1/accounts?kind=system": "kind", "/v1/accounts?status=gone": "status", "/v1/members?membershipLevel=x": "membershipLevel", "/v1/members?limit=201": "limit"} {
		h.as(t, owner, "GET", path, nil).refused(t, 400, "invalid_request", "query:"+name)
	}
}

// W02: suspension stops an account's keys, in all organisations, with the next request, and gives them back; deactivation revokes them for
// good and says what the account owns.
func TestW02_SuspendActivateDeactivate(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	there := h.newCaller(t, uuid.Nil, "*")
	h.do(t, "POST", "/v1/members", `{"accountId":"`+there.account.String()+`"}`).wants(t, 201)
	here := h.newKey(t, caller{org: h.admin.org, account: there.account}) // the same account, here
	path := "/v1/accounts/" + there.account.String()
	set := func(verb, status string) account {
		t.Helper()
		a := h.do(t, "POST", path+"/"+verb, nil).wants(t, 200)
		var got struct {
			account
			Account            *account
			OwnedOrganizations []organization
		}
		a.into(t, &got)
		if got.Account != nil {
			if len(got.OwnedOrganizations) != 2 || got.OwnedOrganizations[0].ID != there.org.String() && got.OwnedOrganizations[1].ID != there.org.String() {
				t.Errorf("it owns %+v", got.OwnedOrganizations)
			}
			got.account = *got.Account
		}
		if got.Status != status || a.header.Get("ETag") != fmt.Sprintf(`"%d"`, got.Revision) {
			t.Errorf("%s: %s %v", verb, a.body, a.header)
		}
		return got.account
	}
	works := func(does bool, keys ...caller) {
		t.Helper()
		for _, c := range keys {
			if a := h.as(t, c, "GET", "/v1/me", nil); does {
				a.wants(t, 200)
			} else {
				a.refused(t, 401, "unauthenticated")
			}
		}
	}
	var second struct {
		Organization organization
		OwnerKey     string
	}
	h.do(t, "POST", "/v1/organizations", `{"slug":"second","name":"n","ownerId":"`+there.account.String()+`"}`).wants(t, 201).into(t, &second)
	keys := []caller{there, here, {key: second.OwnerKey}}
	works(true, keys...)
	set("suspend", "suspended")
	works(false, keys...)
	if a, b := set("suspend", "suspended"), set("suspend", "suspended"); a.Revision != b.Revision {
		t.Error("nothing changed, but for the revision")
	}
	set("activate", "active")
	works(true, keys...)
	for _, key := range keys[:2] { // one is disabled, one expires meanwhile: an activation does not mend that
		h.exec(t, "UPDATE api_keys SET enabled = false WHERE id = $1", key.id)
	}
	set("suspend", "suspended")
	set("activate", "active")
	works(false, keys[:2]...)
	works(true, keys[2])
	h.exec(t, "UPDATE api_keys SET enabled = true")

	set("deactivate", "deactivated")
	works(false, keys...)
	if n := h.count(t, "SELECT count(*) FROM api_keys WHERE account_id = $1 AND revoked_at IS NULL", there.account); n != 0 {
		t.Errorf("%d keys are not revoked", n)
	}
	h.do(t, "POST", path+"/suspend", nil).refused(t, 409, "accounts_status_transition")
	set("deactivate", "deactivated")
	set("activate", "active")
	works(false, keys...)                                                          // for good
	h.do(t, "POST", "/v1/api-keys/"+here.id.String()+"/enable", nil).wants(t, 200) // it is enabled, and revoked
	works(false, keys...)
	h.do(t, "POST", "/v1/api-keys/"+here.id.String()+"/disable", nil).refused(t, 409, "api_keys_revoked_for_good")
	h.do(t, "POST", "/v1/api-keys/"+here.id.String()+"/rotate", nil).refused(t, 409, "api_keys_revoked_for_good")
	h.do(t, "PATCH", "/v1/api-keys/"+here.id.String(), `{"expiresAt":"2099-01-01T00:00:00Z"}`).refused(t, 409, "api_keys_revoked_for_good")
	works(true, h.createKey(t, h.admin, `{"accountId":"`+there.account.String()+`","name":"new","scopes":[]}`).caller(h.admin))
	// A suspended one can be deactivated.
	set("suspend", "suspended")
	set("deactivate", "deactivated")

	// Not one's own, not nobody's, not the system's.
	own := "/v1/accounts/" + h.admin.account.String()
	for _, verb := range []string{"suspend", "deactivate"} {
		h.do(t, "POST", own+"/"+verb, nil).refused(t, 403, "accounts_level_and_status_not_own")
	}
	h.do(t, "POST", own+"/activate", nil).wants(t, 200)
	for _, verb := range []string{"suspend", "activate", "deactivate"} {
		for _, id := range []string{uuid.NewString(), "00000000-0000-7000-8000-000000000001"} {
			h.do(t, "POST", "/v1/accounts/"+id+"/"+verb, nil).refused(t, 404, "account_not_found")
		}
	}
}

// C01: an account that has done something stays; one that has not can be deleted.
func TestC01_DeleteAccount(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	idle, busy := h.newMember(t, owner.org, "member", "*"), h.newMember(t, owner.org, "member", "*")
	f := h.newFamily(t, owner)
	// What both did is nobody's concern, but what busy did is on record.
	session := h.as(t, idle, "POST", "/v1/sessions", `{"projectId":"`+f.project+`"}`).wants(t, 201).id(t)
	h.as(t, busy, "PATCH", "/v1/accounts/"+busy.account.String(), `{"displayName":"busy"}`).wants(t, 200)
	remove := func(c caller, id uuid.UUID, headers ...string) answer {
		return h.as(t, c, "DELETE", "/v1/accounts/"+id.String(), nil, headers...)
	}
	remove(owner, idle.account).refused(t, 403, "insufficient_scope")
	remove(h.admin, busy.account).refused(t, 409, "audit_logs_owner_id_fkey_in_use")
	remove(h.admin, h.admin.account).wants(t, 409)
	if code := remove(h.admin, owner.account).wants(t, 409).problem(t).Code; code != "audit_logs_owner_id_fkey_in_use" && code != "organizations_owner_id_fkey_in_use" {
		t.Errorf("an owner: %s", code)
	}
	fresh := h.newCaller(t, uuid.Nil, "*") // owns an organisation, and has done nothing
	before := h.tables(t)
	if code := remove(h.admin, fresh.account).wants(t, 409).problem(t).Code; !strings.HasPrefix(code, "organizations_owner_i") {
		t.Errorf("an owner: %s", code)
	}
	remove(h.admin, uuid.New()).refused(t, 404, "account_not_found")
	remove(h.admin, uuid.MustParse("00000000-0000-7000-8000-000000000001")).refused(t, 404, "account_not_found")
	remove(h.admin, idle.account, "If-Match", `"7"`).refused(t, 412, "precondition_failed")
	h.unchanged(t, before, "refused deletions")
	remove(h.admin, idle.account, "If-Match", `"1"`).wants(t, 204)
	remove(h.admin, idle.account).refused(t, 404, "account_not_found")
	h.as(t, idle, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	if s := h.as(t, owner, "GET", "/v1/sessions/"+session, nil).wants(t, 200).session(t); s.AccountID != nil {
		t.Errorf("the session still is %s's", *s.AccountID)
	}
	// A platform admin who has done nothing yet and deletes their own account: they have, by that.
	second := h.newMember(t, h.admin.org, "member", "platform:*")
	remove(second, second.account).refused(t, 409, "audit_logs_owner_id_fkey_in_use")
	h.me(t, second)
}

func TestX01_CreateOrganization(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	tenant := h.newCaller(t, uuid.Nil, "*")
	var made struct {
		Organization         organization
		OwnerKeyID, OwnerKey string
	}
	a := h.do(t, "POST", "/v1/organizations", `{"slug":"acme","name":"Acme","ownerId":"`+tenant.account.String()+`","data":{"a":1},"metadata":{"_x":{}}}`).wants(t, 201)
	a.into(t, &made)
	if a.header.Get("Location") != "/v1/organizations/"+made.Organization.ID || a.header.Get("ETag") != `"1"` || made.Organization.OwnerID != tenant.account.String() || made.Organization.Slug != "acme" ||
		made.Organization.DeletedAt != nil || string(made.Organization.Data) != `{"a":1}` || string(made.Organization.Metadata) != `{"_x":{}}` {
		t.Errorf("%v %s", a.header, a.body)
	}
	// The owner's key works at once: for all of the organisation, and nothing of the platform's.
	owner := caller{key: made.OwnerKey}
	m := h.me(t, owner)
	if m.Organization.ID != made.Organization.ID || m.Account.ID != tenant.account.String() || m.MembershipLevel != "owner" || m.APIKey.ID != made.OwnerKeyID || !slices.Equal(m.APIKey.Scopes, []string{"*"}) {
		t.Errorf("%+v", m)
	}
	h.newFamily(t, caller{key: made.OwnerKey, org: uuid.MustParse(made.Organization.ID), account: tenant.account, id: uuid.MustParse(made.OwnerKeyID)})
	h.as(t, owner, "POST", "/v1/organizations", `{"slug":"b","name":"b"}`).refused(t, 403, "insufficient_scope")
	h.as(t, owner, "GET", "/v1/retention-policy", nil).wants(t, 200)
	// Without an owner it is the caller's.
	h.do(t, "POST", "/v1/organizations", `{"slug":"mine","name":"Mine"}`).wants(t, 201).into(t, &made)
	if made.Organization.OwnerID != h.admin.account.String() {
		t.Errorf("%+v", made)
	}
	before := h.tables(t)
	h.do(t, "POST", "/v1/organizations", `{"slug":"acme","name":"Acme"}`).refused(t, 409, "organizations_slug_key", "/slug")
	h.do(t, "POST", "/v1/organizations", `{"slug":"x","name":"x","ownerId":"`+uuid.NewString()+`"}`).refused(t, 422, "organizations_owner_id_fkey", "/ownerId")
	h.do(t, "POST", "/v1/organizations", `{"slug":"x","name":"x","metadata":{"x":{}}}`).refused(t, 422, "organizations_metadata_check", "/metadata")
	for body, pointer := range map[string]string{
		`{"slug":"A","name":"x"}`: "/slug", `{"slug":"a--b","name":"x"}`: "/slug", `{"slug":"` + strings.Repeat("a", 101) + `","name":"x"}`: "/slug", `{"slug":"a","name":""}`: "/name",
		`{"slug":"a","name":"x","ownerId":"x"}`: "/ownerId", `{"slug":"a","name":"x","ownerId":null}`: "/ownerId", `{"slug":"a","name":"x","id":"x"}`: "/id",
	} {
		h.do(t, "POST", "/v1/organizations", body).refused(t, 400, "invalid_request", pointer)
	}
	h.unchanged(t, before, "refused organisations")
}

func TestX01_ListAndUpdateOrganizations(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	var slugs []string
	for _, slug := range []string{"b", "a-1", "a", "a1", "9", "z"} {
		h.do(t, "POST", "/v1/organizations", `{"slug":"`+slug+`","name":"n"}`).wants(t, 201)
		slugs = append(slugs, slug)
	}
	slugs = append(slugs, "default")
	slices.Sort(slugs)
	owner := h.newCaller(t, uuid.Nil, "*")
	h.as(t, owner, "PATCH", "/v1/organizations/"+owner.org.String(), `{"slug":"tenant"}`).wants(t, 200)
	slugs = append(slugs, "tenant")
	slices.Sort(slugs)
	for limit := 1; limit < 10; limit++ {
		if got := h.pages(t, h.admin, "/v1/organizations", "slug", limit); !slices.Equal(got, slugs) {
			t.Errorf("in pages of %d: %v, want %v", limit, got, slugs)
		}
	}
	// Who is no platform admin sees one; so does an admin's account with another key.
	for _, c := range []caller{owner, h.newKey(t, h.admin, "*")} {
		if got := h.pages(t, c, "/v1/organizations", "id", 50); !slices.Equal(got, []string{c.org.String()}) {
			t.Errorf("%v", got)
		}
	}
	path := "/v1/organizations/" + owner.org.String()
	admin := h.newMember(t, owner.org, "admin", "*")
	for i, c := range []caller{owner, admin, h.admin} {
		var o organization
		a := h.as(t, c, "PATCH", path, fmt.Sprintf(`{"slug":"s-%d","name":"n %d","data":{"n":%d},"metadata":{"_x":{"n":%d}}}`, i, i, i, i), "If-Match", fmt.Sprintf(`"%d"`, i+2)).wants(t, 200)
		a.into(t, &o)
		if o.Slug != fmt.Sprintf("s-%d", i) || o.Name != fmt.Sprintf("n %d", i) || o.Revision != i+3 || a.header.Get("ETag") != fmt.Sprintf(`"%d"`, i+3) || string(o.Data) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Errorf("%s", a.body)
		}
		wantJSON(t, "the organisation", h.as(t, c, "GET", path, nil).wants(t, 200).body, a.body)
	}
	before := h.tables(t)
	h.as(t, owner, "PATCH", path, `{"slug":"default"}`).refused(t, 409, "organizations_slug_key", "/slug")
	h.as(t, owner, "PATCH", path, `{"name":"x"}`, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.as(t, owner, "PATCH", path, `{"ownerId":"`+admin.account.String()+`"}`).refused(t, 400, "invalid_request", "/ownerId")
	h.as(t, owner, "PATCH", path, `{"deletedAt":null}`).refused(t, 400, "invalid_request", "/deletedAt")
	h.as(t, owner, "PATCH", path, `{"name":null}`).refused(t, 400, "invalid_request", "/name")
	h.as(t, owner, "PATCH", path, `{"metadata":{"_x":5}}`).refused(t, 422, "organizations_metadata_check", "/metadata")
	h.as(t, owner, "PATCH", "/v1/organizations/"+h.admin.org.String(), `{"name":"x"}`).refused(t, 404, "organization_not_found")
	h.do(t, "PATCH", "/v1/organizations/"+uuid.NewString(), `{"name":"x"}`).refused(t, 404, "organization_not_found")
	h.unchanged(t, before, "refused changes")
}

func TestW16_TransferOrganizationOwnership(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	further, member := h.newMember(t, owner.org, "owner", "*"), h.newMember(t, owner.org, "member", "*")
	path := "/v1/organizations/" + owner.org.String() + "/transfer-ownership"
	to := func(c caller, id uuid.UUID) answer {
		return h.as(t, c, "POST", path, `{"accountId":"`+id.String()+`"}`)
	}
	levels := func(want map[uuid.UUID]string) {
		t.Helper()
		for id, level := range want {
			var m struct{ MembershipLevel string }
			h.as(t, owner, "GET", "/v1/members/"+id.String(), nil).wants(t, 200).into(t, &m)
			if m.MembershipLevel != level {
				t.Errorf("%s is %s, want %s", id, m.MembershipLevel, level)
			}
		}
	}
	before := h.tables(t)
	to(further, further.account).refused(t, 403, "organizations_transferred_by_owner")
	to(further, owner.account).wants(t, 200) // the owner's it is
	to(owner, h.admin.account).refused(t, 422, "organizations_new_owner_is_member", "/accountId")
	to(owner, uuid.New()).refused(t, 422, "organizations_new_owner_is_member", "/accountId")
	to(h.admin, h.admin.account).refused(t, 422, "organizations_new_owner_is_member", "/accountId")
	h.as(t, owner, "POST", path, `{"accountId":"x"}`).refused(t, 400, "invalid_request", "/accountId")
	h.as(t, owner, "POST", path, `{}`).refused(t, 400, "invalid_request", "/accountId")
	h.as(t, owner, "POST", "/v1/organizations/"+h.admin.org.String()+"/transfer-ownership", `{"accountId":"`+owner.account.String()+`"}`).refused(t, 404, "organization_not_found")
	h.do(t, "POST", "/v1/organizations/"+uuid.NewString()+"/transfer-ownership", `{"accountId":"`+owner.account.String()+`"}`).refused(t, 404, "organization_not_found")
	h.unchanged(t, before, "refused transfers")

	// C13: the accountable owner stays one, by name, until there is another.
	own := "/v1/members/" + owner.account.String()
	for _, c := range []caller{owner, further} {
		h.as(t, c, "PATCH", own, `{"membershipLevel":"admin"}`).refused(t, 409, "organizations_owner_is_member_fkey")
		h.as(t, c, "DELETE", own, nil).refused(t, 409, "organizations_owner_is_member_fkey_in_use")
	}
	h.unchanged(t, before, "demotions of the owner")

	var o organization
	a := to(owner, member.account).wants(t, 200)
	a.into(t, &o)
	if o.OwnerID != member.account.String() || o.Revision != 2 || a.header.Get("ETag") != `"2"` {
		t.Errorf("%s", a.body)
	}
	levels(map[uuid.UUID]string{owner.account: "owner", member.account: "owner", further.account: "owner"})
	to(owner, owner.account).refused(t, 403, "organizations_transferred_by_owner") // no longer theirs to give
	h.as(t, owner, "DELETE", "/v1/members/"+member.account.String(), nil).refused(t, 409, "organizations_owner_is_member_fkey_in_use")
	to(h.admin, further.account).wants(t, 200) // a platform admin may, from another organisation
	to(further, member.account).wants(t, 200)
	h.as(t, further, "PATCH", own, `{"membershipLevel":"member"}`).wants(t, 200) // now it can
	h.as(t, owner, "DELETE", own, nil).wants(t, 204)
	h.as(t, owner, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
}

// A further owner makes no key that would be the accountable owner's, and so hands nothing over.
func TestW16_NobodyActsAsTheAccountableOwner(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	other := h.newMember(t, owner.org, "owner", "*")
	h.as(t, other, "POST", "/v1/api-keys", `{"accountId":"`+owner.account.String()+`","name":"x","scopes":["*"]}`).refused(t, 403, "api_keys_holder_within_level")
	h.as(t, other, "POST", "/v1/api-keys/"+owner.id.String()+"/rotate", nil).refused(t, 403, "api_keys_holder_within_level")
	h.as(t, owner, "POST", "/v1/api-keys", `{"accountId":"`+other.account.String()+`","name":"x","scopes":["*"]}`).wants(t, 201)
	h.as(t, owner, "POST", "/v1/api-keys", `{"name":"x","scopes":["*"]}`).wants(t, 201)
	h.as(t, h.newMember(t, owner.org, "owner", "*", "platform:*"), "POST", "/v1/api-keys", `{"accountId":"`+owner.account.String()+`","name":"x","scopes":["*"]}`).wants(t, 201)
	// A key that was lost can be withdrawn by others.
	h.as(t, other, "POST", "/v1/api-keys/"+owner.id.String()+"/revoke", nil).wants(t, 200)
}

// Two transfers at the same moment: each is refused or done, and the owner is a member at level owner throughout.
func TestW16_TransfersRace(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	var heirs []caller
	for range 4 {
		heirs = append(heirs, h.newMember(t, owner.org, "member", "*"))
	}
	path := "/v1/organizations/" + owner.org.String() + "/transfer-ownership"
	counts := h.race(t, 8, func(i int) int {
		if i%2 == 0 {
			return h.as(t, owner, "POST", path, `{"accountId":"`+heirs[i/2].account.String()+`"}`).status
		}
		return h.as(t, owner, "DELETE", "/v1/members/"+heirs[i/2].account.String(), nil).status
	})
	if counts[200] > 1 || counts[200]+counts[204]+counts[403]+counts[409]+counts[422] != 8 {
		t.Errorf("%v", counts)
	}
	if n := h.count(t, "SELECT count(*) FROM organizations o JOIN organization_members m ON m.org_id = o.id AND m.account_id = o.owner_id AND m.membership_level = 'owner' WHERE o.id = $1", owner.org); n != 1 {
		t.Error("the owner is no member at level owner")
	}
}

// W12: its keys fail at once, its rows go in batches, and what it did stays on record.
func TestW12_DeleteOrganization(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner, bystander := h.newCaller(t, uuid.Nil, "*"), h.newCaller(t, uuid.Nil, "*")
	f := h.newFamily(t, owner)
	theirs := h.newFamily(t, bystander)
	worker := h.newMember(t, owner.org, "member", "*")
	h.importFile(t, owner, f.project, numbered("ses_a", "5000", "a", 5, 3)).wants(t, 201)
	h.as(t, owner, "POST", "/v1/members", `{"accountId":"`+bystander.account.String()+`"}`).wants(t, 201)
	h.as(t, worker, "POST", "/v1/sessions", `{"projectId":"`+f.project+`","parentId":"`+f.session+`"}`, "Idempotency-Key", "a").wants(t, 201)
	rotated := h.as(t, owner, "POST", "/v1/api-keys/"+f.oldKey+"/rotate", nil, "Hub-Session", f.session).wants(t, 201)
	path := "/v1/organizations/" + owner.org.String()
	h.as(t, owner, "DELETE", path, nil, "If-Match", `"9"`).refused(t, 412, "precondition_failed")
	h.as(t, bystander, "DELETE", path, nil).refused(t, 404, "organization_not_found")
	h.as(t, h.newMember(t, owner.org, "admin", "*"), "DELETE", path, nil).refused(t, 403, "insufficient_level")
	before := h.tablesOf(t, bystander.org)

	h.as(t, owner, "DELETE", path, nil, "If-Match", `"1"`).wants(t, 204)
	var shown struct{ Key string }
	rotated.into(t, &shown)
	for _, c := range []caller{owner, worker, {key: shown.Key}} {
		h.as(t, c, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
	}
	var o organization
	h.do(t, "GET", path, nil).wants(t, 200).into(t, &o)
	if o.DeletedAt == nil || o.Revision != 2 {
		t.Errorf("%+v", o)
	}
	h.do(t, "DELETE", path, nil).wants(t, 204) // it is under way
	h.do(t, "POST", "/v1/organizations", `{"slug":"`+o.Slug+`","name":"n"}`).refused(t, 409, "organizations_slug_key", "/slug")

	entries := h.count(t, "SELECT count(*) FROM audit_logs WHERE chain_id = $1", owner.org)
	for batches := 0; ; batches++ {
		rows := h.count(t, "SELECT purge_organizations(3)")
		if rows == 0 {
			if batches < 5 {
				t.Errorf("only %d batches", batches)
			}
			break
		}
		if rows > 3 || batches > 1000 {
			t.Fatalf("batch %d removed %d rows", batches, rows)
		}
	}
	for name, column := range h.orgColumns(t) {
		n := h.count(t, `SELECT count(*) FROM public."`+name+`" WHERE `+column+` = $1`, owner.org)
		if isRecord := name == "audit_logs" || name == "audit_chains"; isRecord != (n > 0) {
			t.Errorf("%s holds %d rows of the organisation", name, n)
		}
	}
	if n := h.count(t, "SELECT count(*) FROM audit_logs WHERE chain_id = $1 AND position <= $2 AND org_id IS NULL AND session_id IS NULL", owner.org, entries); n != entries {
		t.Errorf("%d of %d entries are left", n, entries)
	}
	if n := h.count(t, "SELECT count(*) FROM audit_logs WHERE chain_id = $1 AND action = 'organization.purge' AND actor_source = 'worker'", owner.org); n != 1 {
		t.Errorf("the purge is on record %d times", n)
	}
	if n := h.count(t, "SELECT count(*) FROM verify_audit_chain($1) WHERE broken_position IS NULL AND entries > $2", owner.org, entries); n != 1 {
		t.Error("the chain is broken")
	}
	// The accounts are still there, at home nowhere; the slug is free; nobody else lost anything.
	if n := h.count(t, "SELECT count(*) FROM accounts WHERE id = ANY ($1::uuid[]) AND home_org_id IS NULL", []string{f.account, f.heir, worker.account.String()}); n != 3 {
		t.Errorf("%d accounts are left", n)
	}
	h.do(t, "GET", path, nil).refused(t, 404, "organization_not_found")
	h.unchangedOf(t, bystander.org, before, "a purge")
	h.as(t, bystander, "GET", "/v1/sessions/"+theirs.session, nil).wants(t, 200)
	h.do(t, "POST", "/v1/organizations", `{"slug":"`+o.Slug+`","name":"n"}`).wants(t, 201)
}

// Nobody gives or takes a level above their own, and everybody may leave.
func TestW14_LevelsOfMembers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	ranks := []string{"member", "admin", "owner"}
	for rank, level := range ranks {
		actor := h.newMember(t, owner.org, level, "*")
		refusal := func(a answer, allowed bool, status int, what string) {
			t.Helper()
			switch {
			case allowed:
				a.wants(t, status)
			case level == "member" && !strings.Contains(what, "removes"):
				a.refused(t, 403, "insufficient_level")
			default:
				a.refused(t, 403, "organization_members_level_granted")
			}
		}
		for target, of := range ranks {
			what := level + " adds " + of
			outsider := h.newAccount(t, owner, `{"kind":"human","displayName":"x"}`).ID
			h.as(t, owner, "DELETE", "/v1/members/"+outsider, nil).wants(t, 204)
			refusal(h.as(t, actor, "POST", "/v1/members", `{"accountId":"`+outsider+`","membershipLevel":"`+of+`"}`), rank >= 1 && target <= rank, 201, what)
			for to, next := range ranks {
				changed := h.newMember(t, owner.org, of)
				refusal(h.as(t, actor, "PATCH", "/v1/members/"+changed.account.String(), `{"membershipLevel":"`+next+`"}`), rank >= 1 && target <= rank && to <= rank, 200, level+" changes "+of+" to "+next)
			}
			removed := h.newMember(t, owner.org, of, "*")
			refusal(h.as(t, actor, "DELETE", "/v1/members/"+removed.account.String(), nil), rank >= 1 && target <= rank, 204, level+" removes "+of)
		}
		// Oneself: down, never up.
		own := "/v1/members/" + actor.account.String()
		if level == "admin" {
			h.as(t, actor, "PATCH", own, `{"membershipLevel":"owner"}`).refused(t, 403, "organization_members_level_granted")
			h.as(t, actor, "PATCH", own, `{"membershipLevel":"member"}`).wants(t, 200)
		}
		h.as(t, actor, "DELETE", own, nil).wants(t, 204)
		h.as(t, actor, "GET", "/v1/me", nil).refused(t, 401, "unauthenticated")
		h.as(t, owner, "GET", own, nil).refused(t, 404, "member_not_found")
		if n := h.count(t, "SELECT count(*) FROM api_keys WHERE account_id = $1", actor.account); n != 0 {
			t.Errorf("%d keys are left", n)
		}
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	f := h.newFamily(t, owner)
	a := h.as(t, owner, "POST", "/v1/members", `{"accountId":"`+f.outsider+`","membershipLevel":"admin","metadata":{"_x":{"a":1}}}`).wants(t, 201)
	var m struct {
		AccountID, MembershipLevel, Kind, Status, DisplayName string
		Metadata                                              json.RawMessage
		Revision                                              int
	}
	a.into(t, &m)
	path := "/v1/members/" + f.outsider
	if a.header.Get("Location") != path || a.header.Get("ETag") != `"1"` || m.AccountID != f.outsider || m.MembershipLevel != "admin" || m.Kind != "human" || m.Status != "active" || m.DisplayName != "family" || string(m.Metadata) != `{"_x":{"a":1}}` {
		t.Errorf("%v %s", a.header, a.body)
	}
	wantJSON(t, "the member", h.as(t, owner, "GET", path, nil).wants(t, 200).body, a.body)
	before := h.tables(t)
	h.as(t, owner, "POST", "/v1/members", `{"accountId":"`+f.outsider+`"}`).refused(t, 409, "organization_members_pkey")
	h.as(t, owner, "POST", "/v1/members", `{"accountId":"`+uuid.NewString()+`"}`).refused(t, 422, "organization_members_account_id_fkey", "/accountId")
	h.as(t, owner, "POST", "/v1/members", `{"accountId":"`+h.admin.account.String()+`","metadata":{"x":{}}}`).refused(t, 422, "organization_members_metadata_check", "/metadata")
	h.as(t, owner, "PATCH", path, `{"membershipLevel":"member"}`, "If-Match", `"2"`).refused(t, 412, "precondition_failed")
	h.as(t, owner, "DELETE", path, nil, "If-Match", `"2"`).refused(t, 412, "precondition_failed")
	h.as(t, owner, "PATCH", path, `{"accountId":"`+f.account+`"}`).refused(t, 400, "invalid_request", "/accountId")
	h.as(t, owner, "PATCH", path, `{"membershipLevel":null}`).refused(t, 400, "invalid_request", "/membershipLevel")
	h.as(t, owner, "PATCH", path, `{"metadata":{"_x":1}}`).refused(t, 422, "organization_members_metadata_check", "/metadata")
	for _, id := range []string{uuid.NewString(), h.admin.account.String()} {
		h.as(t, owner, "GET", "/v1/members/"+id, nil).refused(t, 404, "member_not_found")
		h.as(t, owner, "PATCH", "/v1/members/"+id, `{"membershipLevel":"admin"}`).refused(t, 404, "member_not_found")
		h.as(t, owner, "DELETE", "/v1/members/"+id, nil).refused(t, 404, "member_not_found")
	}
	h.unchanged(t, before, "refused changes of members")
	a = h.as(t, owner, "PATCH", path, `{"membershipLevel":"member","metadata":{"_x":null,"_y":{}}}`, "If-Match", `"1"`).wants(t, 200)
	a.into(t, &m)
	if m.MembershipLevel != "member" || m.Revision != 2 || string(m.Metadata) != `{"_y":{}}` || a.header.Get("ETag") != `"2"` || m.DisplayName != "family" {
		t.Errorf("%s", a.body)
	}
	h.as(t, owner, "DELETE", path, nil, "If-Match", `"2"`).wants(t, 204)
	h.as(t, owner, "DELETE", path, nil).refused(t, 404, "member_not_found")
}

// C01: the system account acts where nobody is signed in, and nowhere else.
func TestC01_TheSystemAccountIsNobodysMember(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	const system = "00000000-0000-7000-8000-000000000001"
	owner := h.newCaller(t, uuid.Nil, "*")
	before := h.tables(t)
	for _, c := range []caller{owner, h.admin} {
		for path, body := range map[string]string{
			"/v1/members": `{"accountId":"` + system + `"}`, "/v1/api-keys": `{"accountId":"` + system + `","name":"x","scopes":["*"]}`,
			"/v1/organizations": `{"slug":"x","name":"x","ownerId":"` + system + `"}`, "/v1/organizations/" + c.org.String() + "/transfer-ownership": `{"accountId":"` + system + `"}`,
		} {
			if a := h.as(t, c, "POST", path, body); a.status != 422 && !(c == owner && path == "/v1/organizations" && a.status == 403) {
				t.Errorf("%s: status %d: %s", path, a.status, a.body)
			}
		}
	}
	h.unchanged(t, before, "the system account")
	for _, path := range []string{"/v1/accounts", "/v1/members", "/v1/accounts/search?q=system"} {
		if a := h.do(t, "GET", path, nil).wants(t, 200); strings.Contains(string(a.body), system) {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

// C01: the session in which a caller says to act is one of its organisation's, on every operation.
func TestC01_TheActingSession(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f, other := h.newFamily(t, h.admin), h.newFamily(t, h.newCaller(t, uuid.Nil, "*"))
	for _, op := range operations(t) {
		s, ok := f.sampleOf(t, op)
		if !ok || op.public {
			continue
		}
		send := func(session string) answer {
			var body any
			if s.media != "" {
				body = s.body
			}
			return h.as(t, h.admin, s.method, s.path, body, "Hub-Session", session)
		}
		for _, id := range []string{uuid.NewString(), other.session, f.project, "00000000-0000-0000-0000-000000000000"} {
			send(id).refused(t, 422, "acting_session_not_found", "header:Hub-Session")
		}
		for _, id := range []string{"x", f.session[1:], "{" + f.session + "}", "urn:uuid:" + f.session, strings.ReplaceAll(f.session, "-", ""), f.session + " " + f.session} {
			send(id).refused(t, 400, "invalid_request", "header:Hub-Session")
		}
		if op.method != "DELETE" {
			send(strings.ToUpper(f.session)).wants(t, s.status)
		}
	}
}

// W02: what a deactivation revoked for good does not come back by another door, and nobody hands an organisation to who is gone.
func TestW02_DeactivatedAccountsGetNothing(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	gone := h.newMember(t, owner.org, "member", "*")
	transfer := "/v1/organizations/" + owner.org.String() + "/transfer-ownership"
	body := `{"accountId":"` + gone.account.String() + `"}`
	key := `{"accountId":"` + gone.account.String() + `","name":"x","scopes":[]}`
	h.do(t, "POST", "/v1/accounts/"+gone.account.String()+"/deactivate", nil).wants(t, 200)
	for _, c := range []caller{owner, h.newMember(t, owner.org, "owner", "*", "platform:*")} {
		h.as(t, c, "POST", "/v1/api-keys", key).refused(t, 422, "account_is_deactivated", "/accountId")
		h.as(t, c, "POST", transfer, body).refused(t, 422, "account_is_deactivated", "/accountId")
	}
	h.do(t, "POST", "/v1/accounts/"+gone.account.String()+"/activate", nil).wants(t, 200)
	h.as(t, owner, "POST", "/v1/api-keys", key).wants(t, 201)
	h.as(t, owner, "POST", transfer, body).wants(t, 200)

	// A key that is being made while its account is deactivated.
	late := h.newMember(t, owner.org, "member", "*")
	making := h.begin(t)
	making("INSERT INTO api_keys (org_id, account_id, name, key_hash, scopes) VALUES ($1, $2, 'late', $3, '{*}')", owner.org, late.account, mustHash(t, unknownKey()))
	done := make(chan answer, 1)
	go func() { done <- h.do(t, "POST", "/v1/accounts/"+late.account.String()+"/deactivate", nil) }()
	eventually(t, "it waits for the key, or does not", func() bool { return h.waiting() > 0 || len(done) > 0 })
	making("COMMIT")
	(<-done).wants(t, 200)
	if n := h.count(t, "SELECT count(*) FROM api_keys WHERE account_id = $1 AND revoked_at IS NULL", late.account); n != 0 {
		t.Errorf("%d keys are not revoked", n)
	}
}
