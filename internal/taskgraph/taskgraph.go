// Package taskgraph answers taskgraph's questions about tasks and what they depend on: each answer in one pass over the tasks in
// topological order.
package taskgraph

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Task is a node. DependsOn are its prerequisites; what is no task of the graph makes no edge. Empty categories are not assessed.
type Task struct {
	ID, Name, Status    string
	Scope, Risk, Impact string
	DependsOn           []string
}

// Graph is what is asked. Its tasks are numbered in topological order.
type Graph struct {
	Tasks  []Task // prerequisites first; among those that could come next the smallest id
	before [][]int
	after  [][]int
}

// ErrCircle is a circle of dependencies: no order has prerequisites first.
var ErrCircle = errors.New("taskgraph: the tasks depend on each other in a circle")

// New orders the tasks.
func New(tasks []Task) (*Graph, error) {
	tasks = slices.Clone(tasks)
	slices.SortFunc(tasks, func(a, b Task) int { return strings.Compare(a.ID, b.ID) })
	number := make(map[string]int, len(tasks))
	for i, t := range tasks {
		number[t.ID] = i
	}
	waiting, dependents := make([]int, len(tasks)), make([][]int, len(tasks))
	for i, t := range tasks {
		seen := map[int]bool{}
		for _, on := range t.DependsOn {
			if p, ok := number[on]; ok && !seen[p] {
				seen[p] = true
				waiting[i]++
				dependents[p] = append(dependents[p], i)
			}
		}
	}
	var ready heap
	for i, n := range waiting {
		if n == 0 {
			ready.push(i)
		}
	}
	g := &Graph{Tasks: make([]Task, 0, len(tasks)), before: make([][]int, len(tasks)), after: make([][]int, len(tasks))}
	place := make([]int, len(tasks))
	for len(ready) > 0 {
		i := ready.pop()
		place[i] = len(g.Tasks)
		g.Tasks = append(g.Tasks, tasks[i])
		for _, d := range dependents[i] {
			if waiting[d]--; waiting[d] == 0 {
				ready.push(d)
			}
		}
	}
	if len(g.Tasks) < len(tasks) {
		return nil, ErrCircle
	}
	for i, all := range dependents {
		for _, d := range all {
			g.after[place[i]] = append(g.after[place[i]], place[d])
			g.before[place[d]] = append(g.before[place[d]], place[i])
		}
	}
	for i := range g.before {
		slices.Sort(g.before[i])
		slices.Sort(g.after[i])
	}
	return g, nil
}

// heap is a binary heap of numbers, the smallest on top.
type heap []int

func (h *heap) push(n int) {
	*h = append(*h, n)
	for i := len(*h) - 1; i > 0 && (*h)[(i-1)/2] > (*h)[i]; i = (i - 1) / 2 {
		(*h)[i], (*h)[(i-1)/2] = (*h)[(i-1)/2], (*h)[i]
	}
}

func (h *heap) pop() int {
	s := *h
	top, last := s[0], len(s)-1
	s[0] = s[last]
	s = s[:last]
	for i := 0; ; {
		least := i
		for _, child := range []int{2*i + 1, 2*i + 2} {
			if child < last && s[child] < s[least] {
				least = child
			}
		}
		if least == i {
			break
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
	*h = s
	return top
}

// Order is a topological order.
func (g *Graph) Order() []string {
	ids := make([]string, len(g.Tasks))
	for i, t := range g.Tasks {
		ids[i] = t.ID
	}
	return ids
}

// Groups are the generations: the tasks of one can be worked on side by side once those before it are done. Each is sorted by id.
func (g *Graph) Groups() [][]string {
	groups := [][]string{}
	generation := make([]int, len(g.Tasks))
	for i, t := range g.Tasks {
		for _, p := range g.before[i] {
			generation[i] = max(generation[i], generation[p]+1)
		}
		if generation[i] == len(groups) {
			groups = append(groups, nil)
		}
		groups[generation[i]] = append(groups[generation[i]], t.ID)
	}
	for _, group := range groups {
		slices.Sort(group)
	}
	return groups
}

// heaviest is the path with the greatest sum of weights, and that sum. Among equals it is the one found first.
func (g *Graph) heaviest(weight func(Task) float64) ([]string, float64) {
	sum, from, best := make([]float64, len(g.Tasks)), make([]int, len(g.Tasks)), -1
	for i, t := range g.Tasks {
		from[i] = -1
		for _, p := range g.before[i] {
			if from[i] < 0 || sum[p] > sum[from[i]] {
				from[i] = p
			}
		}
		if sum[i] = weight(t); from[i] >= 0 {
			sum[i] += sum[from[i]]
		}
		if best < 0 || sum[i] > sum[best] {
			best = i
		}
	}
	path := []string{}
	if best < 0 {
		return path, 0
	}
	for i := best; i >= 0; i = from[i] {
		path = append(path, g.Tasks[i].ID)
	}
	slices.Reverse(path)
	return path, sum[best]
}

// CriticalPath is a path with the most tasks.
func (g *Graph) CriticalPath() []string {
	path, _ := g.heaviest(func(Task) float64 { return 1 })
	return path
}

// RiskPath is the path with the greatest sum of risk times impact, and that sum.
func (g *Graph) RiskPath() ([]string, float64) {
	return g.heaviest(func(t Task) float64 { return (1 - Success(t.Risk)) * Weight(t.Impact) })
}

// Bottleneck is a task, and the number of paths from any task to any other on which it lies, its own ends included. Above 2^53 it is rounded.
type Bottleneck struct {
	ID    string
	Paths float64
}

// Bottlenecks are the tasks by that number, the greatest first. A path is one into the task and one out of it: nothing is walked.
func (g *Graph) Bottlenecks() []Bottleneck {
	in, out, all := make([]float64, len(g.Tasks)), make([]float64, len(g.Tasks)), make([]Bottleneck, len(g.Tasks))
	for i := range g.Tasks {
		in[i] = 1
		for _, p := range g.before[i] {
			in[i] = min(in[i]+in[p], math.MaxFloat64)
		}
	}
	for i := len(g.Tasks) - 1; i >= 0; i-- {
		out[i] = 1
		for _, d := range g.after[i] {
			out[i] = min(out[i]+out[d], math.MaxFloat64)
		}
		all[i] = Bottleneck{g.Tasks[i].ID, min(in[i]*out[i], math.MaxFloat64) - 1} // less the path that is the task alone
	}
	slices.SortFunc(all, func(a, b Bottleneck) int { return cmp.Or(cmp.Compare(b.Paths, a.Paths), strings.Compare(a.ID, b.ID)) })
	return all
}

// Decompose says why a task should be cut into smaller ones; nothing where it need not.
func Decompose(t Task) (reasons []string) {
	if t.Risk == "high" || t.Risk == "critical" {
		reasons = append(reasons, "risk is "+t.Risk)
	}
	if t.Scope == "broad" || t.Scope == "system" {
		reasons = append(reasons, "scope is "+t.Scope)
	}
	return reasons
}

// The categorical cost model.

// Success is the chance that a task of this risk succeeds at an attempt.
func Success(risk string) float64 {
	return or(map[string]float64{"trivial": .98, "low": .90, "medium": .80, "high": .65, "critical": .50}, risk, .80)
}

// Weight is what the impact counts.
func Weight(impact string) float64 {
	return or(map[string]float64{"isolated": 1, "component": 1.5, "phase": 2, "project": 3}, impact, 1)
}

// Cost is what an attempt at a task of this scope costs.
func Cost(scope string) float64 {
	return or(map[string]float64{"single": 1, "narrow": 2, "moderate": 3, "broad": 4, "system": 5}, scope, 2)
}

func or(values map[string]float64, key string, otherwise float64) float64 {
	if value, ok := values[key]; ok {
		return value
	}
	return otherwise
}

const (
	retries  = 2   // after the first attempt
	fallback = 20  // what it costs when all attempts failed
	lost     = 100 // the time that is lost then,
	lostCost = 0.5 // and what it costs
)

// Expected is the expected cost of a task: of its attempts until one succeeds, or of all and the fallback, times its weight.
func Expected(t Task) float64 {
	p, c := Success(t.Risk), Cost(t.Scope)
	q := 1 - p
	fails := math.Pow(q, retries+1)
	succeeds := 1 - fails
	again := 0.0 // the expected number of retries where one succeeds
	if p < 1 {
		again = q / p * (1 - fails - (retries+1)*p*math.Pow(q, retries)) / succeeds
	}
	return Weight(t.Impact) * (succeeds*(c+c*again) + fails*(c+retries*c+fallback+lost*lostCost))
}

// Pictures --------------------------------------------------------------------------------------------------------------

var colours = map[string]string{"pending": "white", "in-progress": "lightblue", "completed": "palegreen", "failed": "salmon", "blocked": "khaki"}

// DOT draws the graph for Graphviz.
func (g *Graph) DOT() string {
	var b strings.Builder
	b.WriteString("digraph tasks {\n  rankdir=LR;\n  node [shape=box, style=filled];\n")
	for _, t := range g.Tasks {
		fmt.Fprintf(&b, "  %s [label=%s, fillcolor=%s];\n", quoted(t.ID), quoted(t.Name), colours[t.Status])
	}
	for i, t := range g.Tasks {
		for _, d := range g.after[i] {
			fmt.Fprintf(&b, "  %s -> %s;\n", quoted(t.ID), quoted(g.Tasks[d].ID))
		}
	}
	b.WriteString("}\n")
	return b.String()
}

var inDOT = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ", "\r", " ")

func quoted(text string) string { return `"` + inDOT.Replace(text) + `"` }

var inMermaid = strings.NewReplacer(`"`, "#quot;", "\n", " ", "\r", " ", "#", "#35;", "<", "#lt;", ">", "#gt;")

// Mermaid draws the graph for Markdown. Its nodes are numbered, for ids may hold what Mermaid reads as its own.
func (g *Graph) Mermaid() string {
	var b strings.Builder
	b.WriteString("graph LR\n")
	for i, t := range g.Tasks {
		fmt.Fprintf(&b, "  t%d[\"%s\"]\n", i, inMermaid.Replace(t.ID))
	}
	for i := range g.Tasks {
		for _, d := range g.after[i] {
			fmt.Fprintf(&b, "  t%d --> t%d\n", i, d)
		}
	}
	return b.String()
}
