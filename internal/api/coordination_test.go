package api_test

import "testing"

func TestW20_MappingsFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	parent, child := h.newSessionIn(t, p), h.newSessionIn(t, p)
	a := h.do(t, "POST", "/v1/mappings", `{"kind":"delegation","sessionId":"`+child+`","parentSessionId":"`+parent+`","metadata":{"_x":{}}}`).wants(t, 201)
	path := "/v1/mappings/" + a.id(t)
	if a.header.Get("Location") != path || a.header.Get("ETag") != `"1"` {
		t.Errorf("%v", a.header)
	}
	wantJSON(t, "got", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)
	elsewhere := h.newSessionIn(t, h.newProject(t, "elsewhere"))
	h.do(t, "POST", "/v1/mappings", `{"kind":"delegation","sessionId":"`+child+`","parentSessionId":"`+parent+`"}`).refused(t, 409, "mappings_session_active_key", "/sessionId")
	h.do(t, "POST", "/v1/mappings", `{"kind":"delegation","sessionId":"`+parent+`","parentSessionId":"`+parent+`"}`).refused(t, 422, "mappings_not_own_parent_check", "/parentSessionId")
	h.do(t, "POST", "/v1/mappings", `{"kind":"delegation","sessionId":"`+parent+`","parentSessionId":"`+elsewhere+`"}`).refused(t, 422, "mappings_parent_session_id_fkey", "/parentSessionId")
	h.do(t, "POST", "/v1/mappings", `{"kind":"delegation","sessionId":"`+p+`","parentSessionId":"`+parent+`"}`).refused(t, 422, "mappings_session_id_fkey", "/sessionId")

	task := h.claims(t, p, h.newTask(t, p, "a", "").ID)
	for query, want := range map[string]int{
		"": 2, "kind=assignment": 1, "kind=delegation": 1, "status=active": 2, "status=failed": 0, "sessionId=" + child: 1, "parentSessionId=" + parent: 1, "parentSessionId=" + child: 0, "taskId=" + task.ID: 1,
	} {
		if got := len(h.page(t, h.admin, "/v1/projects/"+p+"/mappings?"+query, "id").values); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	h.do(t, "GET", "/v1/projects/"+parent+"/mappings", nil).refused(t, 404, "project_not_found")

	// A coordinator ends an assignment: the task moves with it.
	end := "/v1/mappings/" + task.Claim.MappingID + "/end"
	h.do(t, "POST", end, `{"status":"active"}`).refused(t, 400, "invalid_request", "/status")
	h.do(t, "POST", end, `{"status":"aborted","reason":"enough"}`).wants(t, 200)
	if got := h.do(t, "GET", "/v1/tasks/"+task.ID, nil).task(t); got.Status != "pending" || got.Claim != nil {
		t.Errorf("%+v", got)
	}
	h.do(t, "POST", end, `{"status":"completed"}`).refused(t, 409, "mappings_status_transition")
	h.do(t, "POST", "/v1/mappings/"+p+"/end", `{"status":"completed"}`).refused(t, 404, "mapping_not_found")
	h.do(t, "GET", "/v1/mappings/"+p, nil).refused(t, 404, "mapping_not_found")
	h.do(t, "POST", path+"/end", `{"status":"completed"}`).wants(t, 200)
	// It is over, and another one may begin.
	h.do(t, "POST", "/v1/mappings", `{"kind":"delegation","sessionId":"`+child+`","parentSessionId":"`+parent+`"}`).wants(t, 201)
}

// A placement: on a spoke, in a workspace, or both; it ends with either of its session and its spoke.
func TestW20_PlacementsFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	s, next := h.newSessionIn(t, p), h.newSessionIn(t, p)
	workspace := h.do(t, "POST", "/v1/projects/"+p+"/workspaces", `{"name":"main","path":"/srv/main"}`).wants(t, 201).id(t)
	elsewhere := h.do(t, "POST", "/v1/projects/"+h.newProject(t, "elsewhere")+"/workspaces", `{"name":"main","path":"/srv/main"}`).wants(t, 201).id(t)
	spoke := h.do(t, "POST", "/v1/spokes", `{"name":"builder"}`).wants(t, 200).id(t)
	body := func(session, more string) string {
		return `{"kind":"placement","sessionId":"` + session + `"` + more + `}`
	}
	for _, c := range []struct {
		body    string
		status  int
		code    string
		pointer string
	}{
		{`{"sessionId":"` + s + `"}`, 400, "invalid_request", "/kind"},
		{`{"kind":"assignment","sessionId":"` + s + `"}`, 400, "invalid_request", "/kind"},
		{`{"kind":"placement"}`, 400, "invalid_request", "/sessionId"},
		{`{"kind":"delegation","sessionId":"` + s + `"}`, 422, "mappings_parent_of_delegation_check", "/parentSessionId"},
		{`{"kind":"delegation","sessionId":"` + s + `","parentSessionId":"` + next + `","spokeId":"` + spoke + `"}`, 422, "mappings_spoke_of_placement_check", "/spokeId"},
		{`{"kind":"delegation","sessionId":"` + s + `","parentSessionId":"` + next + `","workspaceId":"` + workspace + `"}`, 422, "mappings_workspace_of_placement_check", "/workspaceId"},
		{body(s, ""), 422, "mappings_placement_has_place", "/spokeId"},
		{body(s, `,"spokeId":"`+spoke+`","parentSessionId":"`+next+`"`), 422, "mappings_parent_of_delegation_check", "/parentSessionId"},
		{body(s, `,"spokeId":"`+p+`"`), 422, "mappings_spoke_id_fkey", "/spokeId"},
		{body(s, `,"workspaceId":"`+elsewhere+`"`), 422, "mappings_workspace_id_fkey", "/workspaceId"},
		{body(p, `,"spokeId":"`+spoke+`"`), 422, "mappings_session_id_fkey", "/sessionId"},
	} {
		h.do(t, "POST", "/v1/mappings", c.body).refused(t, c.status, c.code, c.pointer)
	}
	a := h.do(t, "POST", "/v1/mappings", body(s, `,"spokeId":"`+spoke+`","workspaceId":"`+workspace+`"`)).wants(t, 201)
	path := a.header.Get("Location")
	wantJSON(t, "got", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)
	h.do(t, "POST", "/v1/mappings", body(s, `,"workspaceId":"`+workspace+`"`)).refused(t, 409, "mappings_session_active_key", "/sessionId")
	h.do(t, "POST", "/v1/mappings", body(next, `,"workspaceId":"`+workspace+`"`)).wants(t, 201)
	for query, want := range map[string]int{"kind=placement": 2, "spokeId=" + spoke: 1, "workspaceId=" + workspace: 2, "workspaceId=" + elsewhere: 0, "spokeId=" + p: 0, "sessionId=" + s + "&workspaceId=" + workspace: 1} {
		if got := len(h.page(t, h.admin, "/v1/projects/"+p+"/mappings?"+query, "id").values); got != want {
			t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
	// The spoke is gone: the session may be placed anew, but not there.
	h.do(t, "POST", "/v1/spokes/"+spoke+"/disconnect", `{"epoch":1}`).wants(t, 200)
	var m struct{ Status, Reason, SpokeID, EndedAt string }
	h.do(t, "GET", path, nil).into(t, &m)
	if m.Status != "aborted" || m.Reason != "The spoke disconnected." || m.SpokeID != spoke || m.EndedAt == "" {
		t.Errorf("%+v", m)
	}
	h.do(t, "POST", "/v1/mappings", body(s, `,"spokeId":"`+spoke+`"`)).refused(t, 409, "mappings_spoke_disconnected", "/spokeId")
	path = h.do(t, "POST", "/v1/mappings", body(s, `,"workspaceId":"`+workspace+`"`)).wants(t, 201).header.Get("Location")
	// The workspace is deleted: what was nowhere else is aborted.
	h.do(t, "DELETE", "/v1/workspaces/"+workspace, nil).wants(t, 204)
	var lost struct {
		Status, Reason string
		WorkspaceID    *string
	}
	h.do(t, "GET", path, nil).into(t, &lost)
	if lost.Status != "aborted" || lost.Reason != "Its place is gone." || lost.WorkspaceID != nil {
		t.Errorf("%+v", lost)
	}
	h.do(t, "POST", path+"/end", `{"status":"completed"}`).refused(t, 409, "mappings_status_transition")
}
