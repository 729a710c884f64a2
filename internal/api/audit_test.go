package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/alkdev/hub/internal/api"
)

// The audit log, by the API.

type auditEntry struct {
	ID, OwnerID, ActorSource, DatabaseUser, Action, TargetType, PreviousHash, Hash string
	Position                                                                       int
	CreatedAt                                                                      time.Time
	APIKeyID, SessionID, TargetID                                                  *string
	Changes                                                                        json.RawMessage
}

type verification struct {
	Intact                                bool
	Entries, HeadPosition, AnchorPosition int
	HeadHash                              string
	Broken                                *struct {
		Position int
		ID       *string
		How      string
	}
}

// entries are all that a query finds, the newest first.
func (h *hub) entries(t testing.TB, c caller, query string) (all []auditEntry) {
	t.Helper()
	for cursor := ""; ; {
		var list struct {
			Items      []auditEntry
			NextCursor string
		}
		h.as(t, c, "GET", "/v1/audit-logs?limit=200"+query+cursor, nil).wants(t, 200).into(t, &list)
		all = append(all, list.Items...)
		if list.NextCursor == "" {
			return all
		}
		cursor = "&cursor=" + list.NextCursor
	}
}

func (h *hub) exported(t testing.TB, c caller, query string) (all []auditEntry) {
	t.Helper()
	a := h.as(t, c, "GET", "/v1/audit-logs/export?"+strings.TrimPrefix(query, "&"), nil).wants(t, 200)
	if got := a.header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("the type is %s", got)
	}
	lines := bufio.NewScanner(bytes.NewReader(a.body))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e auditEntry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v: %s", err, lines.Bytes())
		}
		all = append(all, e)
	}
	return all
}

func (h *hub) verify(t testing.TB, c caller) (v verification) {
	t.Helper()
	h.as(t, c, "GET", "/v1/audit-logs/verification", nil).wants(t, 200).into(t, &v)
	return v
}

// W12: every change of accounts, organisations, members, keys and retention leaves an entry: who, with which key, in which session, what,
// to what, and how.
func TestW12_EachChangeLeavesItsEntry(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	admin := h.newMember(t, owner.org, "admin", "*")
	platform := h.newMember(t, owner.org, "owner", "*", "platform:*")
	f := h.newFamily(t, owner)
	here := "/v1/organizations/" + owner.org.String()
	type change struct {
		c                    caller
		method, path, body   string
		actions              []string // the oldest first
		targetType, targetID string
		changes              string // of the last
	}
	for i, w := range []change{
		{owner, "POST", "/v1/accounts", `{"kind":"llm","displayName":"zebra4711","email":"zebra4711@alk.dev","membershipLevel":"admin","data":{"zebra4711":1},"metadata":{"_zebra4711":{}}}`,
			[]string{"account.create", "member.create"}, "member", "", `{"account_id":{"after":"ID"},"membership_level":{"after":"admin"}}`},
		{owner, "PATCH", "/v1/accounts/" + f.account, `{"displayName":"zebra4711","email":"zebra4711@example.com","data":{"zebra4711":1},"metadata":{"_zebra4711":{}}}`,
			[]string{"account.update"}, "account", f.account, `{"data":{"changed":true},"display_name":{"changed":true},"email":{"changed":true},"metadata":{"changed":true}}`},
		{platform, "PATCH", "/v1/accounts/" + f.account, `{"accessLevel":"admin"}`, []string{"account.update"}, "account", f.account, `{"access_level":{"after":"admin","before":"member"}}`},
		{platform, "POST", "/v1/accounts/" + f.account + "/suspend", "", []string{"account.suspend"}, "account", f.account, `{"status":{"after":"suspended","before":"active"}}`},
		{platform, "POST", "/v1/accounts/" + f.account + "/activate", "", []string{"account.activate"}, "account", f.account, `{"status":{"after":"active","before":"suspended"}}`},
		{platform, "POST", "/v1/accounts/" + f.leaver + "/deactivate", "", []string{"account.deactivate"}, "account", f.leaver, `{"status":{"after":"deactivated","before":"active"}}`},
		{owner, "PATCH", here, `{"name":"New","slug":"new-slug","data":{"zebra4711":1}}`, []string{"organization.update"}, "organization", f.org, `{"data":{"changed":true},"name":{"after":"New","before":"Other"},"slug":{"after":"new-slug","before":"*"}}`},
		{admin, "POST", "/v1/members", `{"accountId":"` + f.outsider + `"}`, []string{"member.create"}, "member", f.outsider, `{"account_id":{"after":"` + f.outsider + `"},"membership_level":{"after":"member"}}`},
		{admin, "PATCH", "/v1/members/" + f.outsider, `{"membershipLevel":"admin","metadata":{"_zebra4711":{}}}`, []string{"member.update"}, "member", f.outsider, `{"membership_level":{"after":"admin","before":"member"},"metadata":{"changed":true}}`},
		{admin, "DELETE", "/v1/members/" + f.outsider, "", []string{"member.delete"}, "member", f.outsider, `{"account_id":{"before":"` + f.outsider + `"},"membership_level":{"before":"admin"},"metadata":{"changed":true}}`},
		{owner, "POST", "/v1/api-keys", `{"name":"made","scopes":["projects:read"],"tags":["a"],"metadata":{"_zebra4711":{}}}`,
			[]string{"key.create"}, "key", "", `{"account_id":{"after":"` + owner.account.String() + `"},"enabled":{"after":true},"metadata":{"changed":true},"name":{"after":"made"},"scopes":{"after":["projects:read"]},"tags":{"after":["a"]}}`},
		{owner, "PATCH", "/v1/api-keys/" + f.key, `{"name":"new","scopes":["*"],"expiresAt":"2099-01-01T00:00:00Z"}`,
			[]string{"key.update"}, "key", f.key, `{"expires_at":{"after":"2099-01-01T00:00:00+00:00"},"name":{"after":"new","before":"family"},"scopes":{"after":["*"],"before":["keys:write"]}}`},
		{owner, "POST", "/v1/api-keys/" + f.key + "/disable", "", []string{"key.disable"}, "key", f.key, `{"enabled":{"after":false,"before":true}}`},
		{owner, "POST", "/v1/api-keys/" + f.key + "/enable", "", []string{"key.enable"}, "key", f.key, `{"enabled":{"after":true,"before":false}}`},
		{owner, "POST", "/v1/api-keys/" + f.lostKey + "/revoke", "", []string{"key.revoke"}, "key", f.lostKey, `{"revoked_at":{"after":"*"}}`},
		{owner, "POST", "/v1/api-keys/" + f.oldKey + "/rotate", `{"graceSeconds":60}`, []string{"key.create", "key.rotate"}, "key", f.oldKey, `{"expires_at":{"after":"*"},"rotated_to_id":{"after":"*"}}`},
		{admin, "PATCH", "/v1/watch-policy", `{"errorCount":null,"metadata":{"_zebra4711":{}}}`, []string{"watch.update"}, "watch", f.org, `{"error_count":{"before":10},"metadata":{"changed":true}}`},
		{owner, "PATCH", "/v1/retention-policy", `{"auditDays":400,"metadata":{"_zebra4711":{}}}`, []string{"retention.update"}, "retention", f.org, `{"audit_days":{"after":400},"metadata":{"changed":true}}`},
		{owner, "POST", here + "/transfer-ownership", `{"accountId":"` + f.heir + `"}`, []string{"member.update", "organization.transfer"}, "organization", f.org, `{"owner_id":{"after":"` + f.heir + `","before":"` + owner.account.String() + `"}}`},
		{platform, "DELETE", "/v1/accounts/" + f.account, "", []string{"account.delete", "member.delete"}, "*", f.account, ""},
	} {
		name := fmt.Sprintf("%d %s %s", i, w.method, w.actions[0])
		before := h.entries(t, owner, "")
		var body any
		if w.body != "" {
			body = w.body
		}
		session := map[bool]string{true: f.session}[i%2 == 0]
		a := h.as(t, w.c, w.method, w.path, body, "Hub-Session", session)
		if a.status >= 300 {
			t.Fatalf("%s: status %d: %s", name, a.status, a.body)
		}
		after := h.entries(t, owner, "")
		made := after[:len(after)-len(before)]
		slices.Reverse(made)
		var actions []string
		for _, e := range made {
			actions = append(actions, e.Action)
			if e.OwnerID != w.c.account.String() || value(e.APIKeyID) != w.c.id.String() || e.ActorSource != "api" || e.DatabaseUser != "hub_app" || deref(e.SessionID) != session {
				t.Errorf("%s: %+v", name, e)
			}
			text, _ := json.Marshal(e)
			if strings.Contains(string(text), "zebra4711") || strings.Contains(string(text), "key_hash") || strings.Contains(string(text), "hub_") && e.DatabaseUser != "hub_app" {
				t.Errorf("%s tells what is personal: %s", name, text)
			}
		}
		want := slices.Clone(w.actions)
		got := slices.Clone(actions)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, actions, w.actions)
			continue
		}
		if w.targetType == "*" {
			continue
		}
		last := made[slices.Index(actions, w.actions[len(w.actions)-1])]
		var created struct {
			ID     string
			APIKey struct{ ID string }
		}
		if a.status == 201 {
			a.into(t, &created)
		}
		if id := or(w.targetID, or(created.ID, created.APIKey.ID)); last.TargetType != w.targetType || value(last.TargetID) != id {
			t.Errorf("%s: of %s %s, want %s %s", name, last.TargetType, value(last.TargetID), w.targetType, id)
		}
		var changes, wanted map[string]map[string]any
		if err := json.Unmarshal(last.Changes, &changes); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(strings.ReplaceAll(w.changes, "ID", created.ID)), &wanted); err != nil {
			t.Fatal(err)
		}
		for column, change := range changes { // what differs from run to run
			for when := range change {
				if wanted[column][when] == "*" {
					change[when] = "*"
				}
			}
		}
		wantJSON(t, name, []byte(jsonOf(t, changes)), []byte(strings.ReplaceAll(w.changes, "ID", created.ID)))
	}
	if v := h.verify(t, owner); !v.Intact || v.Entries != len(h.entries(t, owner, "")) {
		t.Errorf("%+v", v)
	}

	// What changes nothing, and what is refused, leaves none.
	before := h.entries(t, owner, "")
	h.as(t, owner, "PATCH", here, `{"name":"New"}`).wants(t, 200)
	h.as(t, owner, "POST", "/v1/api-keys/"+f.key+"/enable", nil).wants(t, 200)
	h.as(t, owner, "PATCH", here, `{"slug":"default"}`).wants(t, 409)
	h.as(t, admin, "PATCH", "/v1/members/"+owner.account.String(), `{"membershipLevel":"member"}`).wants(t, 403)
	h.as(t, owner, "POST", "/v1/projects", `{"slug":"p","name":"not audited"}`).wants(t, 201)
	if after := h.entries(t, owner, ""); len(after) != len(before) {
		t.Errorf("%+v", after[:len(after)-len(before)])
	}
	// By SQL, nobody is signed in: the system account, and psql.
	h.exec(t, "UPDATE organizations SET name = 'psql' WHERE id = $1", owner.org)
	if e := h.entries(t, owner, "")[0]; e.OwnerID != "00000000-0000-7000-8000-000000000001" || e.ActorSource != "psql" || e.DatabaseUser != "hub" || e.APIKeyID != nil || e.SessionID != nil || e.Action != "organization.update" {
		t.Errorf("%+v", e)
	}
	// An organisation that is made has a chain from its first entry on.
	var made struct {
		Organization struct{ ID string }
		OwnerKey     string
	}
	h.as(t, platform, "POST", "/v1/organizations", `{"slug":"made","name":"Made"}`).wants(t, 201).into(t, &made)
	fresh := h.entries(t, caller{key: made.OwnerKey}, "")
	var actions []string
	for i, e := range fresh {
		actions = append(actions, e.Action)
		if e.Position != len(fresh)-i || e.OwnerID != platform.account.String() || value(e.APIKeyID) != platform.id.String() {
			t.Errorf("%+v", e)
		}
	}
	slices.Sort(actions)
	if !slices.Equal(actions, []string{"key.create", "member.create", "organization.create"}) {
		t.Errorf("%v", actions)
	}
}

// Filters, one by one and together; pages; the export has the same.
func TestW12_FiltersOfTheAuditLog(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	admin := h.newMember(t, owner.org, "admin", "*")
	second := h.newKey(t, admin, "*")
	f := h.newFamily(t, owner)
	for i, c := range []caller{owner, admin, second, admin} {
		key := h.createKey(t, c, fmt.Sprintf(`{"name":"k%d","scopes":[]}`, i))
		h.as(t, c, "POST", "/v1/api-keys/"+key.APIKey.ID+"/disable", nil, "Hub-Session", f.session).wants(t, 200)
		h.as(t, c, "POST", "/v1/api-keys/"+key.APIKey.ID+"/revoke", nil).wants(t, 200)
	}
	all := h.entries(t, owner, "")
	if len(all) < 20 {
		t.Fatalf("%d entries", len(all))
	}
	for i, e := range all {
		if e.Position != len(all)-i || i > 0 && (!e.CreatedAt.Before(all[i-1].CreatedAt) || all[i-1].PreviousHash != e.Hash) {
			t.Errorf("entry %d: %+v", i, e)
		}
	}
	middle := all[len(all)/2]
	at := func(e auditEntry) string { return url.QueryEscape(e.CreatedAt.Format(time.RFC3339Nano)) }
	for query, keep := range map[string]func(e auditEntry) bool{
		"":                                   func(auditEntry) bool { return true },
		"&ownerId=" + admin.account.String(): func(e auditEntry) bool { return e.OwnerID == admin.account.String() },
		"&apiKeyId=" + second.id.String():    func(e auditEntry) bool { return value(e.APIKeyID) == second.id.String() },
		"&sessionId=" + f.session:            func(e auditEntry) bool { return value(e.SessionID) == f.session },
		"&targetId=" + f.account:             func(e auditEntry) bool { return value(e.TargetID) == f.account },
		"&action=key.revoke":                 func(e auditEntry) bool { return e.Action == "key.revoke" },
		"&action=key.":                       func(auditEntry) bool { return false }, // the whole of it, not how it begins
		"&targetType=key":                    func(e auditEntry) bool { return e.TargetType == "key" },
		"&targetType=k":                      func(auditEntry) bool { return false },
		"&targetType=member&ownerId=" + owner.account.String(): func(e auditEntry) bool { return e.TargetType == "member" && e.OwnerID == owner.account.String() },
		"&action=%25":          func(auditEntry) bool { return false },
		"&action=":             func(auditEntry) bool { return false },
		"&since=" + at(middle): func(e auditEntry) bool { return !e.CreatedAt.Before(middle.CreatedAt) },
		"&until=" + at(middle): func(e auditEntry) bool { return e.CreatedAt.Before(middle.CreatedAt) },
		"&since=" + at(all[len(all)-3]) + "&until=" + at(middle): func(e auditEntry) bool {
			return e.CreatedAt.Before(middle.CreatedAt) && !e.CreatedAt.Before(all[len(all)-3].CreatedAt)
		},
		"&since=" + at(middle) + "&until=" + at(middle): func(auditEntry) bool { return false },
		"&ownerId=" + admin.account.String() + "&action=key.disable&apiKeyId=" + admin.id.String() + "&sessionId=" + f.session: func(e auditEntry) bool {
			return e.OwnerID == admin.account.String() && e.Action == "key.disable" && value(e.APIKeyID) == admin.id.String() && value(e.SessionID) == f.session
		},
		"&ownerId=" + uuid.NewString():       func(auditEntry) bool { return false },
		"&platform=false":                    func(auditEntry) bool { return true },
		"&since=2001-01-01T00:00:00%2B05:00": func(auditEntry) bool { return true },
		"&until=0001-01-01T00:00:00Z":        func(auditEntry) bool { return false },
		"&since=9999-12-31T23:59:59Z":        func(auditEntry) bool { return false },
	} {
		var want []string
		for _, e := range all {
			if keep(e) {
				want = append(want, e.ID)
			}
		}
		if strings.Contains(query, "&action=key.disable&") && len(want) != 2 || strings.Contains(query, "second") && len(want) == 0 {
			t.Errorf("%s wants %d", query, len(want))
		}
		for _, limit := range []int{1, 2, 7, 200} {
			if got := h.pages(t, owner, "/v1/audit-logs?"+strings.TrimPrefix(query, "&"), "id", limit); !slices.Equal(got, want) {
				t.Errorf("%s in pages of %d: %d entries, want %d", query, limit, len(got), len(want))
			}
		}
		export := h.exported(t, owner, query)
		slices.Reverse(export)
		list := h.entries(t, owner, query)
		if x, y := fmt.Sprint(jsonOf(t, export)), fmt.Sprint(jsonOf(t, list)); x != y && len(list)+len(export) > 0 {
			t.Errorf("%s: the export has %s, the list %s", query, x, y)
		}
	}
	for query, name := range map[string]string{
		"ownerId=x": "ownerId", "apiKeyId=": "apiKeyId", "since=yesterday": "since", "until=2026-01-01": "until", "platform=maybe": "platform", "action=" + strings.Repeat("x", 101): "action", "action=%00": "action", "targetId=%00": "targetId",
	} {
		for _, path := range []string{"/v1/audit-logs?", "/v1/audit-logs/export?"} {
			h.as(t, owner, "GET", path+query, nil).refused(t, 400, "invalid_request", "query:"+name)
		}
	}
	cursor := h.page(t, owner, "/v1/audit-logs?limit=1", "id").cursor
	h.as(t, owner, "GET", "/v1/audit-logs?action=key.create&cursor="+cursor, nil).refused(t, 400, "invalid_cursor", "query:cursor")
}

func deref(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}

func jsonOf(t testing.TB, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// New entries come while somebody pages: none is shown twice, none is left out.
func TestW12_PagingWhileEntriesCome(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	h.newFamily(t, owner)
	want := h.pages(t, owner, "/v1/audit-logs", "id", 200)
	var got []string
	for path := "/v1/audit-logs?limit=2"; ; {
		p := h.page(t, owner, path, "id")
		got = append(got, p.values...)
		if p.cursor == "" {
			break
		}
		h.createKey(t, owner, `{"name":"meanwhile","scopes":[]}`)
		path = "/v1/audit-logs?limit=2&cursor=" + p.cursor
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

// X03: what a superuser does to the log is seen, and where it began.
func TestX03_TamperingIsSeen(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner, bystander := h.newCaller(t, uuid.Nil, "*"), h.newCaller(t, uuid.Nil, "*")
	h.newFamily(t, owner)
	good := h.verify(t, owner)
	all := h.entries(t, owner, "")
	if !good.Intact || good.Broken != nil || good.Entries != len(all) || good.HeadPosition != len(all) || good.HeadHash != all[0].Hash || good.AnchorPosition != 0 {
		t.Fatalf("%+v", good)
	}
	slices.Reverse(all) // by position
	n := len(all)
	h.exec(t, "CREATE TABLE untouched AS SELECT * FROM audit_logs; CREATE TABLE untouched_chains AS SELECT * FROM audit_chains")
	for name, w := range map[string]struct {
		sql      string
		position int
		id       string // "" where there is none
		how      string
	}{
		"an actor":                  {"UPDATE audit_logs SET owner_id = '00000000-0000-7000-8000-000000000001' WHERE chain_id = $1 AND position = 4", 4, all[3].ID, "altered"},
		"an action":                 {"UPDATE audit_logs SET action = 'key.delete' WHERE chain_id = $1 AND position = 5", 5, all[4].ID, "altered"},
		"changes":                   {`UPDATE audit_logs SET changes = changes || '{"x":{"changed":true}}' WHERE chain_id = $1 AND position = 2`, 2, all[1].ID, "altered"},
		"a time":                    {"UPDATE audit_logs SET created_at = created_at - interval '1 microsecond' WHERE chain_id = $1 AND position = 6", 6, all[5].ID, "altered"},
		"a key":                     {"UPDATE audit_logs SET api_key_id = NULL WHERE chain_id = $1 AND position = 7", 7, all[6].ID, "altered"},
		"the first":                 {"UPDATE audit_logs SET target_id = NULL WHERE chain_id = $1 AND position = 1", 1, all[0].ID, "altered"},
		"with its hash":             {"UPDATE audit_logs l SET action = 'a.b' WHERE chain_id = $1 AND position = 3", 4, all[3].ID, "unlinked"},
		"the newest, with its hash": {fmt.Sprintf("UPDATE audit_logs l SET action = 'a.b' WHERE chain_id = $1 AND position = %d", n), n, all[n-1].ID, "altered"},
		"deleted":                   {"DELETE FROM audit_logs WHERE chain_id = $1 AND position = 3", 3, "", "missing"},
		"deleted first":             {"DELETE FROM audit_logs WHERE chain_id = $1 AND position = 1", 1, "", "missing"},
		"deleted last":              {fmt.Sprintf("DELETE FROM audit_logs WHERE chain_id = $1 AND position = %d", n), n, "", "missing"},
		"deleted all":               {"DELETE FROM audit_logs WHERE chain_id = $1", 1, "", "missing"},
		"re-ordered":                {"UPDATE audit_logs SET position = CASE position WHEN 2 THEN -3 ELSE -2 END WHERE chain_id = $1 AND position IN (2, 3)", 2, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h.exec(t, "SET session_replication_role = replica")
			h.exec(t, w.sql, owner.org)
			if strings.Contains(name, "with its hash") {
				h.exec(t, "UPDATE audit_logs l SET hash = audit_hash(l) WHERE chain_id = $1", owner.org)
			}
			if name == "re-ordered" {
				h.exec(t, "UPDATE audit_logs SET position = -position WHERE position < 0")
				w.id, w.how = all[2].ID, "altered"
			}
			h.exec(t, "SET session_replication_role = DEFAULT")
			v := h.verify(t, owner)
			if v.Intact || v.Broken == nil || v.Broken.Position != w.position || deref(v.Broken.ID) != w.id || v.Broken.How != w.how {
				t.Errorf("%+v, %+v", v, v.Broken)
			}
			if v := h.verify(t, bystander); !v.Intact {
				t.Errorf("another's chain: %+v", v)
			}
			h.exec(t, "SET session_replication_role = replica; DELETE FROM audit_logs; INSERT INTO audit_logs SELECT * FROM untouched; SET session_replication_role = DEFAULT")
			if v := h.verify(t, owner); !v.Intact || v.HeadHash != good.HeadHash {
				t.Errorf("mended: %+v", v)
			}
		})
	}
	// Without a superuser's means it does not come so far: also not for the API's login.
	for _, sql := range []string{"UPDATE audit_logs SET action = 'a.b'", "DELETE FROM audit_logs", "TRUNCATE audit_logs", "UPDATE audit_chains SET position = 0", "DELETE FROM audit_chains"} {
		if _, err := h.owner.Exec(t.Context(), sql); err == nil {
			t.Errorf("%s went through", sql)
		}
	}
	// It goes on after all that.
	h.createKey(t, owner, `{"name":"x","scopes":[]}`)
	if v := h.verify(t, owner); !v.Intact || v.Entries != n+1 {
		t.Errorf("%+v", v)
	}
}

// The platform's chain: what happens to accounts that are at home nowhere. For platform admins.
func TestX01_ThePlatformsAuditLog(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*") // its account has no home
	h.do(t, "POST", "/v1/accounts/"+owner.account.String()+"/suspend", nil).wants(t, 200)
	h.do(t, "POST", "/v1/accounts/"+owner.account.String()+"/activate", nil).wants(t, 200)
	found := h.entries(t, h.admin, "&platform=true&targetId="+owner.account.String())
	if len(found) != 3 || found[0].Action != "account.activate" || found[1].Action != "account.suspend" || found[2].Action != "account.create" || found[0].OwnerID != h.admin.account.String() {
		t.Errorf("%+v", found)
	}
	if here := h.entries(t, h.admin, "&targetId="+owner.account.String()); len(here) != 0 {
		t.Errorf("%+v", here)
	}
	if export := h.exported(t, h.admin, "&platform=true&targetId="+owner.account.String()); len(export) != 3 {
		t.Errorf("%+v", export)
	}
	var v verification
	h.do(t, "GET", "/v1/audit-logs/verification?platform=true", nil).wants(t, 200).into(t, &v)
	if !v.Intact || v.Entries < 3 {
		t.Errorf("%+v", v)
	}
	for _, c := range []caller{owner, h.newMember(t, owner.org, "owner", "audit:read"), h.newKey(t, h.admin, "*")} {
		for _, path := range []string{"", "/export", "/verification"} {
			if a := h.as(t, c, "GET", "/v1/audit-logs"+path+"?platform=true", nil).wants(t, 403); strings.Contains(string(a.body), "audit:read") || !strings.Contains(string(a.body), "platform:*") {
				t.Errorf("it does not name what is missing: %s", a.body)
			}
			h.as(t, c, "GET", "/v1/audit-logs"+path+"?platform=false", nil).wants(t, 200)
		}
	}
}

func TestW09_RetentionPolicy(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	admin, member := h.newMember(t, owner.org, "admin", "*"), h.newMember(t, owner.org, "member", "*")
	h.newFamily(t, owner)
	type policy struct {
		AuditDays *int
		Metadata  json.RawMessage
		Revision  int
	}
	var p policy
	a := h.as(t, member, "GET", "/v1/retention-policy", nil).wants(t, 200)
	a.into(t, &p)
	if p.AuditDays != nil || p.Revision != 1 || string(p.Metadata) != "{}" || a.header.Get("ETag") != `"1"` {
		t.Errorf("%s", a.body)
	}
	before := h.tables(t)
	for _, c := range []caller{admin, member} {
		h.as(t, c, "PATCH", "/v1/retention-policy", `{"auditDays":1}`).refused(t, 403, "insufficient_level")
	}
	h.as(t, owner, "PATCH", "/v1/retention-policy", `{"auditDays":1}`, "If-Match", `"2"`).refused(t, 412, "precondition_failed")
	for _, days := range []string{"0", "-1", "36501", "1.5", `"1"`, "true"} {
		h.as(t, owner, "PATCH", "/v1/retention-policy", `{"auditDays":`+days+`}`).refused(t, 400, "invalid_request", "/auditDays")
	}
	h.as(t, owner, "PATCH", "/v1/retention-policy", `{"metadata":{"x":{}}}`).refused(t, 422, "retention_policies_metadata_check", "/metadata")
	h.unchanged(t, before, "refused policies")
	a = h.as(t, owner, "PATCH", "/v1/retention-policy", `{"auditDays":30,"metadata":{"_x":{"a":1}}}`, "If-Match", `"1"`).wants(t, 200)
	a.into(t, &p)
	if p.AuditDays == nil || *p.AuditDays != 30 || p.Revision != 2 || string(p.Metadata) != `{"_x":{"a":1}}` || a.header.Get("ETag") != `"2"` {
		t.Errorf("%s", a.body)
	}
	wantJSON(t, "the policy", h.as(t, owner, "GET", "/v1/retention-policy", nil).wants(t, 200).body, a.body)

	// What is older goes, the anchor says so, the chain holds; and the log tells.
	all := h.entries(t, owner, "")
	h.exec(t, "SET session_replication_role = replica")
	h.exec(t, "UPDATE audit_logs SET created_at = created_at - interval '31 days' WHERE chain_id = $1 AND position <= 5", owner.org)
	for position := 1; position <= len(all); position++ { // as if it had been written so
		h.exec(t, "UPDATE audit_logs l SET previous_hash = coalesce((SELECT p.hash FROM audit_logs p WHERE p.chain_id = l.chain_id AND p.position = l.position - 1), l.previous_hash) WHERE chain_id = $1 AND position = $2", owner.org, position)
		h.exec(t, "UPDATE audit_logs l SET hash = audit_hash(l) WHERE chain_id = $1 AND position = $2", owner.org, position)
	}
	h.exec(t, "UPDATE audit_chains c SET hash = (SELECT l.hash FROM audit_logs l WHERE l.chain_id = c.chain_id AND l.position = c.position) WHERE chain_id = $1", owner.org)
	h.exec(t, "SET session_replication_role = DEFAULT")
	if v := h.verify(t, owner); !v.Intact {
		t.Fatalf("%+v", v)
	}
	for _, want := range []int{3, 2, 0} {
		if n := h.count(t, "SELECT purge_audit_logs(3)"); n != want {
			t.Errorf("%d went, want %d", n, want)
		}
	}
	v := h.verify(t, owner)
	if !v.Intact || v.AnchorPosition != 5 || v.Entries != len(all)-5+2 || v.HeadPosition != len(all)+2 {
		t.Errorf("%+v", v)
	}
	left := h.entries(t, owner, "")
	if e := left[0]; e.Action != "audit.purge" || e.ActorSource != "worker" || e.OwnerID != "00000000-0000-7000-8000-000000000001" || left[len(left)-1].Position != 6 {
		t.Errorf("%+v", e)
	}
	// For ever again.
	h.as(t, owner, "PATCH", "/v1/retention-policy", `{"auditDays":null}`).wants(t, 200).into(t, &p)
	if p.AuditDays != nil || string(p.Metadata) != `{"_x":{"a":1}}` {
		t.Errorf("%+v", p)
	}
	if n := h.count(t, "SELECT purge_audit_logs(100)"); n != 0 {
		t.Errorf("%d went", n)
	}
}

// X03: 32 writers at once leave one unbroken chain, with each of their entries.
func TestX03_ManyWriters(t *testing.T) {
	t.Parallel()
	const writers, each = 32, 5
	h := newHub(t, func(_ *api.Config, c *pgxpool.Config) { c.MaxConns = 40 })
	owner := h.newCaller(t, uuid.Nil, "*")
	before := h.verify(t, owner)
	counts := h.race(t, writers, func(i int) int {
		for range each {
			k := h.createKey(t, owner, fmt.Sprintf(`{"name":"w%d","scopes":[]}`, i))
			h.as(t, owner, "POST", "/v1/api-keys/"+k.APIKey.ID+"/revoke", nil).wants(t, 200)
		}
		return 0
	})
	v := h.verify(t, owner)
	if counts[0] != writers || !v.Intact || v.Entries != before.Entries+2*writers*each {
		t.Errorf("%v, %+v, before %+v", counts, v, before)
	}
}

// x-long: verification and export have the time of an import; other requests have not.
func TestLongOperationsHaveTheirTime(t *testing.T) {
	t.Parallel()
	h := newHub(t, func(c *api.Config, _ *pgxpool.Config) {
		c.RequestTimeout, c.ImportTimeout = 300*time.Millisecond, 30*time.Second
	})
	locked := h.begin(t)
	locked("LOCK audit_logs IN ACCESS EXCLUSIVE MODE")
	got := make(chan answer, 2)
	for _, path := range []string{"/export", "/verification"} {
		go func() { got <- h.do(t, "GET", "/v1/audit-logs"+path, nil) }()
	}
	h.do(t, "GET", "/v1/audit-logs", nil).refused(t, 503, "timeout")
	eventually(t, "both wait", func() bool { return h.waiting() == 2 })
	locked("ROLLBACK")
	for range 2 {
		(<-got).wants(t, 200)
	}
	for _, op := range operations(t) {
		if isAudit := op.id == "exportAuditLogs" || op.id == "verifyAuditLog"; isAudit && !op.long || op.long && op.method != "GET" && op.id != "forkSession" {
			t.Errorf("%s: x-long is %v", op.id, op.long)
		}
	}
}

// An export of more entries than a batch, to the last one.
func TestX03_LargeExports(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	owner := h.newCaller(t, uuid.Nil, "*")
	h.exec(t, `INSERT INTO api_keys (org_id, account_id, name, key_hash) SELECT $1, $2, 'k' || n, sha256(int4send(n)) FROM generate_series(1, 2345) n`, owner.org, owner.account)
	export := h.exported(t, owner, "")
	for i, e := range export {
		if e.Position != i+1 || i > 0 && e.PreviousHash != export[i-1].Hash {
			t.Fatalf("entry %d: %+v", i, e)
		}
	}
	if v := h.verify(t, owner); v.Entries != len(export) || len(export) < 2345 || !v.Intact {
		t.Errorf("%d entries, %+v", len(export), v)
	}
	if ids := h.pages(t, owner, "/v1/audit-logs", "id", 200); len(ids) != len(export) {
		t.Errorf("the list has %d", len(ids))
	}
}

// deadlocks counts those that PostgreSQL broke up, also where a retry hid them.
type deadlocks struct{ count atomic.Int32 }

func (d *deadlocks) note(err error) {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "40P01" {
		d.count.Add(1)
	}
}

func (d *deadlocks) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (d *deadlocks) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	d.note(data.Err)
}
func (d *deadlocks) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (d *deadlocks) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	d.note(data.Err)
}
func (d *deadlocks) TraceBatchEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchEndData) {
	d.note(data.Err)
}

func (d *deadlocks) configure(_ *api.Config, c *pgxpool.Config) { c.ConnConfig.Tracer = d }

// All kinds of audited changes at once: they queue for the chain, and nobody waits in a circle.
func TestX03_AuditedChangesDoNotDeadlock(t *testing.T) {
	t.Parallel()
	broken := &deadlocks{}
	h := newHub(t, broken.configure)
	owner := h.newCaller(t, uuid.Nil, "*")
	path := "/v1/organizations/" + owner.org.String()
	var heirs [16]caller
	for i := range heirs {
		heirs[i] = h.newMember(t, owner.org, "owner", "*")
	}
	for round := range 6 {
		counts := h.race(t, 16, func(i int) int {
			switch i % 8 {
			case 0:
				return h.as(t, owner, "PATCH", path, fmt.Sprintf(`{"slug":"s-%s-%d"}`, owner.org, round)).status
			case 1:
				return h.as(t, owner, "POST", path+"/transfer-ownership", `{"accountId":"`+heirs[i].account.String()+`"}`).status
			case 2:
				return h.as(t, heirs[i], "PATCH", "/v1/members/"+heirs[i-1].account.String(), `{"membershipLevel":"admin"}`).status
			case 3:
				return h.as(t, heirs[i], "PATCH", "/v1/members/"+heirs[i-2].account.String(), `{"membershipLevel":"owner"}`).status
			case 4:
				return h.as(t, heirs[i], "POST", "/v1/accounts", `{"kind":"human","displayName":"x"}`).status
			case 5:
				return h.as(t, heirs[i], "PATCH", "/v1/retention-policy", fmt.Sprintf(`{"auditDays":%d}`, 1+round*16+i)).status
			case 6:
				return h.do(t, "PATCH", path, fmt.Sprintf(`{"name":"%d %d"}`, round, i)).status
			default:
				return h.as(t, heirs[i], "POST", "/v1/api-keys", `{"name":"x","scopes":[]}`, "Idempotency-Key", fmt.Sprint(round)).status
			}
		})
		h.as(t, h.admin, "POST", path+"/transfer-ownership", `{"accountId":"`+owner.account.String()+`"}`).wants(t, 200)
		if counts[503]+counts[500] > 0 {
			t.Errorf("%v", counts)
		}
	}
	if n := broken.count.Load(); n > 0 {
		t.Errorf("%d deadlocks", n)
	}
}

// Offsets that time.Parse takes and encoding/json does not: a cursor or an answer cannot say them.
func TestOffsetsOfADayAreRefused(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.newFamily(t, h.admin)
	for _, at := range []string{"2099-01-01T00:00:00-24:00", "2099-01-01T00:00:00+24:00", "2099-01-01T00:00:00+23:60", "0000-01-01T00:00:00+23:59"} {
		for _, query := range []string{"until=" + url.QueryEscape(at), "since=2001-01-01T00:00:00Z&until=" + url.QueryEscape(at), "until=2099-01-01T00:00:00Z&since=" + url.QueryEscape(strings.Replace(at, "2099", "2001", 1))} {
			if a := h.do(t, "GET", "/v1/audit-logs?limit=1&"+query, nil); a.status != 200 && a.status != 400 {
				t.Errorf("%s: status %d: %s", query, a.status, a.body)
			}
		}
	}
}
