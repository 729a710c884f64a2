package api_test

import (
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"
)

type graphBody struct {
	Order, CriticalPath []string
	ParallelGroups      [][]string
	RiskPath            struct {
		Tasks []string
		Risk  float64
	}
	Bottlenecks []struct {
		Slug  string
		Paths float64
	}
	Decompose []struct {
		Slug    string
		Reasons []string
	}
	Pending []struct {
		Slug     string
		Ready    bool
		WaitsFor []struct{ Slug, Status string }
	}
}

func TestX04_TheGraphOfAProject(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	graph := "/v1/projects/" + p + "/tasks/graph"
	h.do(t, "GET", graph, nil).wants(t, 200)
	h.syncs(t, p, "", "", "g/a.md", file("a", "scope: system\nstatus: completed\n"), "g/b.md", file("b", "depends_on: [a]\nrisk: critical\nimpact: project\n"), "c.md", file("c", "depends_on: [a]\nrisk: trivial\nstatus: failed\n"),
		"d.md", file("d", "depends_on: [b, c]\nrisk: low\npriority: critical\n"), "e.md", file("e", ""), "old.md", file("old", "depends_on: [a]\n"))
	h.do(t, "PATCH", "/v1/tasks/"+h.tasksOf(t, p, "slug=old")[0].ID, `{"archived":true}`).wants(t, 200)
	var g graphBody
	h.do(t, "GET", graph, nil).wants(t, 200).into(t, &g)
	if got := fmt.Sprint(g.Order, g.ParallelGroups, g.CriticalPath, g.RiskPath.Tasks, g.Bottlenecks, g.Decompose); got != "[a b c d e] [[a e] [b c] [d]] [a b d] [a b d] [{a 4} {d 4} {b 3} {c 3} {e 0}] [{a [scope is system]} {b [risk is critical]}]" {
		t.Error(got)
	}
	if math.Abs(g.RiskPath.Risk-1.8) > 1e-9 {
		t.Error(g.RiskPath.Risk)
	}
	if got := fmt.Sprint(g.Pending); got != "[{d false [{b pending} {c failed}]} {b true []} {e true []}]" {
		t.Error(got)
	}
	h.do(t, "GET", graph+"?pathPrefix=g/", nil).wants(t, 200).into(t, &g)
	if fmt.Sprint(g.Order) != "[a b]" {
		t.Error(g.Order)
	}
	if got := string(h.do(t, "GET", graph+"?format=dot", nil).wants(t, 200).body); !strings.HasPrefix(got, "digraph tasks {") || !strings.Contains(got, `"b" -> "d";`) || strings.Contains(got, "old") {
		t.Error(got)
	}
	if got := string(h.do(t, "GET", graph+"?format=mermaid", nil).wants(t, 200).body); !strings.HasPrefix(got, "graph LR\n") || !strings.Contains(got, "t1 --> t3") {
		t.Error(got)
	}
	h.do(t, "GET", graph+"?format=png", nil).refused(t, 400, "invalid_request", "query:format")
	h.do(t, "GET", "/v1/projects/"+h.newSession(t)+"/tasks/graph", nil).refused(t, 404, "project_not_found")

	var costs struct {
		Total float64
		Items []struct {
			Slug     string
			Expected float64
		}
	}
	h.do(t, "GET", "/v1/projects/"+p+"/tasks/costs", nil).wants(t, 200).into(t, &costs)
	sum := 0.0
	for _, item := range costs.Items {
		sum += item.Expected
	}
	if len(costs.Items) != 4 || costs.Items[3].Slug != "e" || math.Abs(costs.Items[3].Expected-(.8*2+.2*.8*4+.04*.8*6+.008*76)) > 1e-9 || math.Abs(sum-costs.Total) > 1e-9 {
		t.Errorf("%+v", costs)
	}
	h.do(t, "GET", "/v1/projects/"+p+"/tasks/costs?completed=true", nil).wants(t, 200).into(t, &costs)
	if len(costs.Items) != 5 || costs.Total <= sum {
		t.Errorf("%+v", costs)
	}
}

// A large project: synced whole, and answered; go test -v tells how fast. HUB_TEST_LARGE=1 for 10,000 tasks.
func TestX04_ALargeProject(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	p := h.newProject(t, "p")
	var files []string
	n := 2000
	if os.Getenv("HUB_TEST_LARGE") != "" {
		n = 10000
	}
	for i := range n {
		more := ""
		if i > 0 {
			more = fmt.Sprintf("depends_on: [t%05d, t%05d]\n", max(0, i-1-i*7%50), max(0, i-1-i*13%90))
		}
		files = append(files, fmt.Sprintf("d%d/t%05d.md", i%10, i), file(fmt.Sprintf("t%05d", i), more))
	}
	took := func(what string, fn func()) {
		start := time.Now()
		fn()
		t.Logf("%s: %v", what, time.Since(start).Round(time.Millisecond))
	}
	took("sync", func() {
		if r := h.syncs(t, p, "", "", files...); len(r.Created) != n {
			t.Fatalf("%d created, %v", len(r.Created), r.Errors)
		}
	})
	took("again", func() {
		if r := h.syncs(t, p, "", "", files...); r.Applied || len(r.Unchanged) != n {
			t.Fatalf("%d unchanged", len(r.Unchanged))
		}
	})
	h.exec(t, "ANALYZE")
	took("graph", func() {
		var g graphBody
		h.do(t, "GET", "/v1/projects/"+p+"/tasks/graph", nil).wants(t, 200).into(t, &g)
		if len(g.Order) != n || len(g.Pending) != n {
			t.Errorf("%d in order", len(g.Order))
		}
	})
	took("claim", func() {
		if got := h.do(t, "POST", "/v1/projects/"+p+"/tasks/claim", `{"sessionId":"`+h.newSessionIn(t, p)+`"}`).wants(t, 200).task(t); got.Slug != "t00000" || got.DownstreamCount != n-1 {
			t.Errorf("%s with %d behind it", got.Slug, got.DownstreamCount)
		}
	})
}
