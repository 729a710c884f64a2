package api_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// Another organisation's caller, who may do everything there, finds nothing of ours through any operation, refers to nothing,
// and changes nothing.
func TestX01_NothingOfAnotherOrganisation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ours := h.newFamily(t, h.admin)
	h.imports(t, ours.project, numbered("ses_ours", "5000", "ours", 3, 2), "created")
	stranger := h.newCaller(t, uuid.Nil, "*", "platform:*")
	theirs := h.newFamily(t, stranger)

	for _, op := range operations(t) {
		s, ok := ours.sampleOf(t, op)
		if !ok || op.public {
			continue
		}
		t.Run(op.id, func(t *testing.T) {
			before := h.tables(t)
			a := h.send(t, stranger, s)
			usesOurs := slices.ContainsFunc(ours.ids(), func(id string) bool { return strings.Contains(s.path+s.body, id) })
			switch {
			case !usesOurs && op.method == "GET":
				a.wants(t, 200)
				for _, id := range ours.ids() {
					if strings.Contains(string(a.body), id) {
						t.Errorf("the list has our %s: %s", id, a.body)
					}
				}
			case !usesOurs:
				a.wants(t, s.status) // the stranger's own
				return
			case slices.ContainsFunc(ours.ids(), func(id string) bool { return strings.Contains(s.path, "/"+id) }):
				a.refused(t, 404, a.problem(t).Code)
				if !strings.HasSuffix(a.problem(t).Code, "_not_found") {
					t.Errorf("%s", a.body)
				}
				// Exactly as if it were nowhere.
				nowhere := s
				for _, id := range ours.ids() {
					nowhere.path = strings.ReplaceAll(nowhere.path, id, "01a20700-0000-7000-8000-000000000001")
				}
				b := h.send(t, stranger, nowhere).wants(t, 404)
				if x, y := a.problem(t), b.problem(t); x.Code != y.Code || x.Detail != y.Detail || len(x.Errors) != len(y.Errors) {
					t.Errorf("told apart from nothing: %s, %s", a.body, b.body)
				}
			default: // named in the body or the query
				a.wants(t, 422)
				if code := a.problem(t).Code; !strings.HasSuffix(code, "_fkey") {
					t.Errorf("%s", a.body)
				}
			}
			h.unchanged(t, before, op.id+" of a stranger")
			// The twin: the owner of the family is answered.
			if op.method == "GET" {
				h.send(t, h.admin, s).wants(t, s.status)
			}
		})
	}

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
	colleague := h.newCaller(t, h.admin.org, "*", "platform:*")
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
