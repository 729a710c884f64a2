package api_test

import "testing"

func TestW20_MappingsFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	parent, child := h.newSessionIn(t, p), h.newSessionIn(t, p)
	a := h.do(t, "POST", "/v1/mappings", `{"sessionId":"`+child+`","parentSessionId":"`+parent+`","metadata":{"_x":{}}}`).wants(t, 201)
	path := "/v1/mappings/" + a.id(t)
	if a.header.Get("Location") != path || a.header.Get("ETag") != `"1"` {
		t.Errorf("%v", a.header)
	}
	wantJSON(t, "got", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)
	elsewhere := h.newSessionIn(t, h.newProject(t, "elsewhere"))
	h.do(t, "POST", "/v1/mappings", `{"sessionId":"`+child+`","parentSessionId":"`+parent+`"}`).refused(t, 409, "mappings_session_active_key", "/sessionId")
	h.do(t, "POST", "/v1/mappings", `{"sessionId":"`+parent+`","parentSessionId":"`+parent+`"}`).refused(t, 422, "mappings_not_own_parent_check", "/parentSessionId")
	h.do(t, "POST", "/v1/mappings", `{"sessionId":"`+parent+`","parentSessionId":"`+elsewhere+`"}`).refused(t, 422, "mappings_parent_session_id_fkey", "/parentSessionId")
	h.do(t, "POST", "/v1/mappings", `{"sessionId":"`+p+`","parentSessionId":"`+parent+`"}`).refused(t, 422, "mappings_session_id_fkey", "/sessionId")

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
	h.do(t, "POST", "/v1/mappings", `{"sessionId":"`+child+`","parentSessionId":"`+parent+`"}`).wants(t, 201)
}
