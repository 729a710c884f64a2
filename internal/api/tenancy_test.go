package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// tablesOf are the rows of an organisation in all tables: what another one must not change.
func (h *hub) tablesOf(t testing.TB, org uuid.UUID) tables {
	t.Helper()
	all := tables{}
	for name, column := range h.orgColumns(t) {
		condition := column + " = $1"
		if name == "accounts" {
			condition = "(home_org_id = $1 OR id IN (SELECT account_id FROM organization_members WHERE org_id = $1))"
		}
		all[name] = h.sumOf(t, name, condition, org)
	}
	return all
}

// orgColumns are the tables that hold rows of organisations, and the column that says whose.
func (h *hub) orgColumns(t testing.TB) map[string]string {
	t.Helper()
	columns := map[string]string{"accounts": "home_org_id", "organizations": "id", "audit_chains": "chain_id", "audit_logs": "chain_id"}
	rows, err := h.owner.Query(t.Context(), `SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'audit_logs'`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		columns[name] = "org_id"
	}
	if rows.Err() != nil || len(columns) < 12 {
		t.Fatalf("%v, %v", columns, rows.Err())
	}
	return columns
}

func (h *hub) unchangedOf(t testing.TB, org uuid.UUID, since tables, what string) {
	t.Helper()
	for name, now := range h.tablesOf(t, org) {
		if since[name] != now {
			t.Errorf("%s: rows of %s in the table %s changed: %s, before %s", what, org, name, now, since[name])
		}
	}
}

// Two organisations attack each other through every operation: with each other's requests; with their own, in which each id in turn is
// the other's; with the other's ids in every query; in the other's sessions. Nothing of the other's is in an answer, and no row of the
// other's changes. A third attacker is a platform admin, who may see and change accounts and organisations, but nothing under them.
func TestX01_OrganisationsAttackEachOther(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	a, b := h.newCaller(t, uuid.Nil, "*"), h.newCaller(t, uuid.Nil, "*")
	admin := h.newCaller(t, uuid.Nil, "*", "platform:*")
	families := map[caller]family{a: h.newFamily(t, a), b: h.newFamily(t, b), admin: h.newFamily(t, admin)}
	for name, w := range map[string]struct{ attacker, victim caller }{"a attacks b": {a, b}, "b attacks a": {b, a}, "a platform admin attacks a": {admin, a}} {
		t.Run(name, func(t *testing.T) {
			victim := families[w.victim]
			nowhere := make([]string, 0, len(victim.ids()))
			for _, id := range victim.ids() {
				nowhere = append(nowhere, id, uuid.NewString())
			}
			// told fails the test if an answer holds an id of the victim's that the request did not name.
			told := func(t *testing.T, s sample, got answer) {
				t.Helper()
				for _, id := range victim.ids() {
					if strings.Contains(string(got.body), id) && !strings.Contains(s.path+s.body, id) {
						t.Errorf("%s %s %s: the answer has their %s: %s", s.method, s.path, s.body, id, got.body)
					}
				}
			}
			before := h.tablesOf(t, w.victim.org)
			for _, op := range operations(t) {
				// What platform admins are for, and what handing over an id permits.
				isPlatforms := w.attacker == admin && (slices.Contains(op.scopes, "platform:*") || strings.HasSuffix(op.id, "Organization") || strings.HasSuffix(op.id, "Account") ||
					op.id == "listOrganizations" || op.id == "transferOrganizationOwnership")
				if op.public || isPlatforms || op.id == "addMember" {
					continue
				}
				t.Run(op.id, func(t *testing.T) {
					s, ok := victim.sampleOf(t, op)
					if !ok {
						return
					}
					// Their request, as it stands. It is told apart from nothing by no word.
					if inPath, elsewhere := victim.namedBy(s); inPath || elsewhere {
						got := h.send(t, w.attacker, s)
						told(t, s, got)
						same := s
						r := strings.NewReplacer(nowhere...)
						same.path, same.body = r.Replace(s.path), r.Replace(s.body)
						want := h.send(t, w.attacker, same)
						x, y := got.problem(t), want.problem(t)
						if got.status != want.status || got.status < 403 || got.status > 422 || x.Code != y.Code || x.Detail != y.Detail || len(x.Errors) != len(y.Errors) {
							t.Errorf("told apart from nothing: %s, %s", got.body, want.body)
						}
					} else if op.method == "GET" && !slices.Contains(op.scopes, "platform:*") {
						told(t, s, h.send(t, w.attacker, s).wants(t, 200))
					}
					// The attacker's own, with one of their ids.
					mine := families[w.attacker]
					s, _ = mine.sampleOf(t, op)
					for i, id := range mine.ids() {
						mixed := s
						mixed.path, mixed.body = strings.ReplaceAll(s.path, id, victim.ids()[i]), strings.ReplaceAll(s.body, id, victim.ids()[i])
						if mixed == s {
							continue
						}
						got := h.send(t, w.attacker, mixed)
						told(t, mixed, got)
						if got.status < 400 || got.status >= 500 {
							t.Errorf("%s %s %s: status %d: %s", mixed.method, mixed.path, mixed.body, got.status, got.body)
						}
					}
					// Every filter that takes an id, with each of theirs; and every request in each of their sessions.
					s, _ = victim.sampleOf(t, op)
					for _, filter := range op.filters {
						for _, id := range victim.ids() {
							if op.method != "GET" || strings.Contains(s.path, victim.session) || strings.Contains(s.path, victim.project+"/") { // not found, whatever the filter
								continue
							}
							got := h.send(t, w.attacker, s.with(filter+"="+id)).wants(t, 200)
							if body := strings.TrimSpace(string(got.body)); body != "" && !strings.HasPrefix(body, "retry: ") && body != `{"items":[]}` && !(filter == "accountId" && id == victim.outsider) {
								t.Errorf("%s=%s finds %s", filter, id, body)
							}
						}
					}
					s, _ = mine.sampleOf(t, op)
					var body any
					if s.media != "" {
						body = s.body
					}
					got := h.as(t, w.attacker, s.method, s.path, body, "Content-Type", or(s.media, "application/json"), "Hub-Session", victim.session)
					if slices.Contains(op.scopes, "platform:*") {
						got.refused(t, 403, "insufficient_scope")
						return
					}
					got.refused(t, 422, "acting_session_not_found", "header:Hub-Session")
				})
			}
			h.unchangedOf(t, w.victim.org, before, name)
		})
	}
	// All of it goes through with one's own.
	for c, f := range families {
		for _, op := range operations(t) {
			if s, ok := f.sampleOf(t, op); ok && op.method == "GET" && (c == admin || !slices.Contains(op.scopes, "platform:*")) {
				h.send(t, c, s).wants(t, s.status)
			}
		}
	}
}

// An account that is handed over by its id becomes a member there, and nothing changes for its own organisation.
func TestX01_AnAccountWorksInSeveralOrganisations(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	home, other := h.newCaller(t, uuid.Nil, "*"), h.newCaller(t, uuid.Nil, "*")
	worker := h.newMember(t, home.org, "admin", "*")
	f := h.newFamily(t, home)
	id := worker.account.String()
	h.as(t, other, "GET", "/v1/accounts/"+id, nil).refused(t, 404, "account_not_found")
	before := h.tablesOf(t, home.org)
	h.as(t, other, "POST", "/v1/members", `{"accountId":"`+id+`","membershipLevel":"admin"}`).wants(t, 201)
	h.as(t, other, "GET", "/v1/accounts/"+id, nil).wants(t, 200)
	// It is seen, and not theirs to change.
	h.as(t, other, "PATCH", "/v1/accounts/"+id, `{"displayName":"ours"}`).refused(t, 403, "accounts_profile_by_its_managers")
	h.as(t, other, "POST", "/v1/accounts/"+id+"/suspend", nil).refused(t, 403, "insufficient_scope")
	// Not even with a key that was made for it there.
	guest := h.createKey(t, other, `{"accountId":"`+id+`","name":"guest","scopes":["*"]}`).caller(other)
	h.as(t, guest, "PATCH", "/v1/accounts/"+id, `{"displayName":"ours","email":"ours@alk.dev"}`).refused(t, 403, "accounts_profile_by_its_managers")
	// Its key of one organisation says nothing of the other.
	key := h.newKey(t, caller{org: other.org, account: worker.account}, "*")
	for _, path := range []string{"/v1/projects/" + f.project, "/v1/sessions/" + f.session, "/v1/accounts/" + f.account, "/v1/members/" + f.account, "/v1/api-keys/" + f.key} {
		h.as(t, key, "GET", path, nil).wants(t, 404)
		h.as(t, worker, "GET", path, nil).wants(t, 200)
	}
	var me struct{ Organization struct{ ID string } }
	h.as(t, key, "GET", "/v1/me", nil).wants(t, 200).into(t, &me)
	if me.Organization.ID != other.org.String() {
		t.Errorf("it acts in %s", me.Organization.ID)
	}
	// The keys that it has there are not shown here.
	var keys struct{ Items []struct{ ID string } }
	h.as(t, worker, "GET", "/v1/api-keys?accountId="+id, nil).wants(t, 200).into(t, &keys)
	if len(keys.Items) != 1 || keys.Items[0].ID != worker.id.String() {
		t.Errorf("%+v", keys)
	}
	h.unchangedOf(t, home.org, before, "a member of another organisation")
}

// What lists, names and files have in common is kept apart.
func TestX01_NothingOfAnotherOrganisation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ours := h.newFamily(t, h.admin)
	h.imports(t, ours.project, numbered("ses_ours", "5000", "ours", 3, 2), "created")
	stranger := h.newCaller(t, uuid.Nil, "*")
	theirs := h.newFamily(t, stranger)

	// Every filter of the lists, by values that are ours.
	for _, query := range []string{
		"projectId=" + ours.project, "parentId=" + ours.session, "accountId=" + h.admin.account.String(), "sourceId=ses_ours", "roleName=build", "archived=false", "runState=idle&projectId=" + ours.project,
	} {
		found := h.page(t, stranger, "/v1/sessions?"+query, "projectId")
		for _, project := range found.values {
			if project != theirs.project {
				t.Errorf("%s finds a session of project %s", query, project)
			}
		}
		if strings.Contains(query, ours.project) && len(found.values) > 0 {
			t.Errorf("%s finds %v", query, found.values)
		}
		if len(h.page(t, h.admin, "/v1/sessions?"+query, "id").values) == 0 && !strings.Contains(query, "parentId") {
			t.Errorf("%s finds nothing of our own", query)
		}
	}
	// A message of ours under a session of theirs, and a parent of ours for a session of theirs.
	h.as(t, stranger, "GET", "/v1/sessions/"+theirs.session+"/messages/"+ours.message, nil).refused(t, 404, "message_not_found")
	h.as(t, stranger, "POST", "/v1/sessions", `{"projectId":"`+theirs.project+`","parentId":"`+ours.session+`"}`).refused(t, 422, "sessions_parent_id_fkey", "/parentId")
	h.as(t, stranger, "POST", "/v1/sessions", `{"projectId":"`+theirs.project+`","parentId":"`+theirs.session+`"}`).wants(t, 201)

	// What must be unique is unique within an organisation: slugs and sources of ours are free there, roles are not shared.
	slug := h.do(t, "POST", "/v1/projects", `{"slug":"same","name":"n"}`).wants(t, 201)
	h.as(t, stranger, "POST", "/v1/projects", `{"slug":"same","name":"n"}`).wants(t, 201)
	h.as(t, stranger, "POST", "/v1/projects", `{"slug":"same","name":"n"}`).refused(t, 409, "projects_slug_key", "/slug")
	h.do(t, "GET", slug.header.Get("Location"), nil).wants(t, 200)
	h.as(t, stranger, "POST", "/v1/sessions", `{"projectId":"`+theirs.project+`","roleName":"build"}`).refused(t, 422, "sessions_role_name_fkey", "/roleName")
	h.do(t, "POST", "/v1/sessions", `{"projectId":"`+ours.project+`","roleName":"build"}`).wants(t, 201)

	// The same export in both: two sessions, and neither touches the other.
	file := numbered("ses_ours", "9000", "theirs", 4, 1)
	before := h.do(t, "GET", "/v1/sessions?sourceId=ses_ours", nil)
	a := h.importFile(t, stranger, theirs.project, file).wants(t, 201)
	wantJSON(t, "our session", h.do(t, "GET", "/v1/sessions?sourceId=ses_ours", nil).body, before.body)
	wantJSON(t, "their export", h.as(t, stranger, "GET", "/v1/sessions/"+a.id(t)+"/export", nil).wants(t, 200).body, []byte(file.String()))
	// A child of theirs does not find a parent of ours.
	child := export{id: "ses_child", info: `,"parentID":"ses_only_ours"`}
	h.imports(t, ours.project, export{id: "ses_only_ours"}, "created")
	id := h.importFile(t, stranger, theirs.project, child).wants(t, 201).id(t)
	if s := h.as(t, stranger, "GET", "/v1/sessions/"+id, nil).session(t); s.ParentID != nil {
		t.Errorf("their child has our parent: %+v", s)
	}
	if s := h.do(t, "GET", "/v1/sessions/"+h.imports(t, ours.project, child, "created").ID, nil).session(t); s.ParentID == nil {
		t.Error("our child has no parent")
	}
}

// Two accounts of one organisation work on the same rows, each under its own name.
func TestX01_MembersOfOneOrganisationShareIt(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	colleague := h.newMember(t, h.admin.org, "owner", "*", "platform:*")
	for _, op := range operations(t) {
		if s, ok := f.sampleOf(t, op); ok && op.method != "DELETE" {
			h.send(t, colleague, s).wants(t, s.status)
		}
	}
	s := h.as(t, colleague, "POST", "/v1/sessions", `{"projectId":"`+f.project+`"}`).wants(t, 201).session(t)
	if value(s.AccountID) != colleague.account.String() {
		t.Errorf("the session is %s's, want %s", value(s.AccountID), colleague.account)
	}
	// C01: it stays when they leave.
	h.exec(t, "DELETE FROM organization_members WHERE account_id = $1", colleague.account)
	if s := h.do(t, "GET", "/v1/sessions/"+s.ID, nil).wants(t, 200).session(t); s.AccountID != nil {
		t.Errorf("the session still is %s's", *s.AccountID)
	}
	h.as(t, colleague, "GET", "/v1/sessions/"+s.ID, nil).refused(t, 401, "unauthenticated")
}
