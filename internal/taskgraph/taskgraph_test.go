package taskgraph_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/alkdev/hub/internal/taskgraph"
)

// diamond is a -> b, c -> d; e alone.
var diamond = []taskgraph.Task{
	{ID: "d", Name: "D", Status: "pending", DependsOn: []string{"b", "c", "nothing", "b"}, Risk: "low"}, {ID: "b", Name: `B "x"`, Status: "pending", DependsOn: []string{"a"}, Risk: "critical", Impact: "project"},
	{ID: "c", Name: "C", Status: "failed", DependsOn: []string{"a"}, Risk: "trivial"}, {ID: "a", Name: "A", Status: "completed", Scope: "system"}, {ID: "e", Name: "E", Status: "pending"},
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	g, err := taskgraph.New(diamond)
	if err != nil {
		t.Fatal(err)
	}
	path, risk := g.RiskPath()
	for what, pair := range map[string][2]any{
		"order":       {g.Order(), []string{"a", "b", "c", "d", "e"}},
		"groups":      {g.Groups(), [][]string{{"a", "e"}, {"b", "c"}, {"d"}}},
		"critical":    {g.CriticalPath(), []string{"a", "b", "d"}},
		"risk path":   {path, []string{"a", "b", "d"}},
		"risk":        {fmt.Sprintf("%.3f", risk), fmt.Sprintf("%.3f", .2+.5*3+.1)},
		"bottlenecks": {fmt.Sprint(g.Bottlenecks()), "[{a 4} {d 4} {b 3} {c 3} {e 0}]"}, // ab ac abd acd bd cd
		"decompose":   {[][]string{taskgraph.Decompose(diamond[1]), taskgraph.Decompose(diamond[3]), taskgraph.Decompose(diamond[0])}, [][]string{{"risk is critical"}, {"scope is system"}, nil}},
	} {
		if fmt.Sprint(pair[0]) != fmt.Sprint(pair[1]) {
			t.Errorf("%s: %v, want %v", what, pair[0], pair[1])
		}
	}
	for _, c := range []struct {
		task taskgraph.Task
		want float64
	}{
		// By hand, from the chances of each attempt: p(c) + qp(2c) + qqp(3c) + qqq(3c + 70).
		{taskgraph.Task{}, .8*2 + .2*.8*4 + .04*.8*6 + .008*76},
		{taskgraph.Task{Risk: "critical", Scope: "system", Impact: "project"}, 3 * (.5*5 + .25*10 + .125*15 + .125*85)},
		{taskgraph.Task{Risk: "trivial", Scope: "single", Impact: "component"}, 1.5 * (.98 + .02*.98*2 + .0004*.98*3 + .000008*73)},
	} {
		if got := taskgraph.Expected(c.task); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%+v: %v, want %v", c.task, got, c.want)
		}
	}
	if got := g.DOT(); !strings.Contains(got, `"b" [label="B \"x\"", fillcolor=white];`) || !strings.Contains(got, `"a" -> "b";`) {
		t.Error(got)
	}
	if got := g.Mermaid(); got != "graph LR\n  t0[\"a\"]\n  t1[\"b\"]\n  t2[\"c\"]\n  t3[\"d\"]\n  t4[\"e\"]\n  t0 --> t1\n  t0 --> t2\n  t1 --> t3\n  t2 --> t3\n" {
		t.Error(got)
	}
	if _, err := taskgraph.New([]taskgraph.Task{{ID: "a", DependsOn: []string{"b"}}, {ID: "b", DependsOn: []string{"a"}}}); !errors.Is(err, taskgraph.ErrCircle) {
		t.Error(err)
	}
	if g, err := taskgraph.New(nil); err != nil || len(g.CriticalPath()) != 0 || len(g.Groups()) != 0 {
		t.Error(err)
	}
}

// Against an evaluation that walks every path.
func TestAgainstWalkingEveryPath(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	risks, impacts := []string{"", "trivial", "low", "medium", "high", "critical"}, []string{"", "isolated", "component", "phase", "project"}
	for range 300 {
		n := 1 + random.IntN(9)
		tasks := make([]taskgraph.Task, n)
		for i := range tasks {
			tasks[i] = taskgraph.Task{ID: fmt.Sprintf("t%d", (i*7)%n+100*i), Risk: risks[random.IntN(6)], Impact: impacts[random.IntN(5)]}
			for j := range i {
				if random.IntN(3) == 0 {
					tasks[i].DependsOn = append(tasks[i].DependsOn, tasks[j].ID)
				}
			}
		}
		on, longest, riskiest := map[string]float64{}, 0, 0.0
		byID := map[string]taskgraph.Task{}
		var walk func(path []taskgraph.Task)
		walk = func(path []taskgraph.Task) {
			sum := 0.0
			for _, task := range path {
				sum += (1 - taskgraph.Success(task.Risk)) * taskgraph.Weight(task.Impact)
				if len(path) > 1 {
					on[task.ID]++
				}
			}
			longest, riskiest = max(longest, len(path)), max(riskiest, sum)
			for _, task := range tasks {
				if slices.Contains(task.DependsOn, path[len(path)-1].ID) {
					walk(append(slices.Clone(path), task))
				}
			}
		}
		for _, task := range tasks {
			byID[task.ID] = task
			walk([]taskgraph.Task{task})
		}
		g, err := taskgraph.New(tasks)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range g.Bottlenecks() {
			if b.Paths != on[b.ID] {
				t.Fatalf("%s lies on %v paths, want %v of %+v", b.ID, b.Paths, on[b.ID], tasks)
			}
		}
		path, risk := g.RiskPath()
		for _, p := range [][]string{g.CriticalPath(), path} {
			for i := 1; i < len(p); i++ {
				if !slices.Contains(byID[p[i]].DependsOn, p[i-1]) {
					t.Fatalf("%v is no path", p)
				}
			}
		}
		if len(g.CriticalPath()) != longest || math.Abs(risk-riskiest) > 1e-9 || len(g.Groups()) != longest {
			t.Fatalf("%v of %d, risk %v of %v", g.CriticalPath(), longest, risk, riskiest)
		}
		order := g.Order()
		for i, id := range order {
			for _, p := range byID[id].DependsOn {
				if slices.Index(order, p) > i {
					t.Fatalf("%s comes after what waits for it: %v", p, order)
				}
			}
		}
	}
}
