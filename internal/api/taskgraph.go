package api

import (
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/taskgraph"
)

// graphRow is a task with its prerequisites, those that were put aside too.
type graphRow struct {
	db.ListTaskGraphRow
	DependsOn []uuid.UUID
}

// graphOf reads a project's tasks, and orders those whose path begins with the prefix. The rows are in the order of claims; the map has all.
func (s *Server) graphOf(ctx context.Context, project uuid.UUID, prefix *string) ([]graphRow, *taskgraph.Graph, map[uuid.UUID]graphRow, error) {
	found, err := s.db.ListTaskGraph(ctx, project)
	if err != nil {
		return nil, nil, nil, err
	}
	edges, err := s.db.ListDependencyEdges(ctx, project)
	if err != nil {
		return nil, nil, nil, err
	}
	dependsOn := map[uuid.UUID][]uuid.UUID{}
	for _, e := range edges {
		dependsOn[e.DependentTaskID] = append(dependsOn[e.DependentTaskID], e.DependsOnTaskID)
	}
	rows := each(found, func(row db.ListTaskGraphRow) graphRow { return graphRow{row, dependsOn[row.ID]} })
	if len(rows) == 0 {
		if _, err := s.db.GetProject(ctx, project); err != nil {
			return nil, nil, nil, missing("project", err)
		}
	}
	byID := make(map[uuid.UUID]graphRow, len(rows))
	for _, row := range rows {
		byID[row.ID] = row
	}
	if prefix != nil {
		rows = slices.DeleteFunc(rows, func(row graphRow) bool { return !strings.HasPrefix(row.Path, *prefix) })
	}
	tasks := make([]taskgraph.Task, len(rows))
	for i, row := range rows {
		tasks[i] = taskgraph.Task{ID: row.Slug, Name: row.Name, Status: row.Status, Scope: deref(row.Scope), Risk: deref(row.Risk), Impact: deref(row.Impact)}
		for _, id := range row.DependsOn {
			if on, ok := byID[id]; ok { // else it was put aside
				tasks[i].DependsOn = append(tasks[i].DependsOn, on.Slug)
			}
		}
	}
	graph, err := taskgraph.New(tasks)
	return rows, graph, byID, err
}

// GetTaskGraph implements the contract's operation: two queries, and one pass for each answer.
func (s *Server) GetTaskGraph(ctx context.Context, r api.GetTaskGraphRequestObject) (api.GetTaskGraphResponseObject, error) {
	rows, graph, byID, err := s.graphOf(ctx, r.ProjectId, r.Params.PathPrefix)
	if err != nil {
		return nil, err
	}
	switch deref(r.Params.Format) {
	case api.GetTaskGraphParamsFormatDot:
		return api.GetTaskGraph200TextResponse(graph.DOT()), nil
	case api.GetTaskGraphParamsFormatMermaid:
		return api.GetTaskGraph200TextResponse(graph.Mermaid()), nil
	}
	path, risk := graph.RiskPath()
	out := api.TaskGraph{
		Order: graph.Order(), ParallelGroups: graph.Groups(), CriticalPath: graph.CriticalPath(), RiskPath: api.TaskRiskPath{Tasks: path, Risk: risk},
		Bottlenecks: each(graph.Bottlenecks(), func(b taskgraph.Bottleneck) api.TaskBottleneck { return api.TaskBottleneck{Slug: b.ID, Paths: b.Paths} }),
		Decompose:   []api.TaskDecompose{}, Pending: []api.TaskReadiness{},
	}
	for _, t := range graph.Tasks {
		if reasons := taskgraph.Decompose(t); reasons != nil {
			out.Decompose = append(out.Decompose, api.TaskDecompose{Slug: t.ID, Reasons: reasons})
		}
	}
	for _, row := range rows {
		if row.Status != "pending" {
			continue
		}
		pending := api.TaskReadiness{Slug: row.Slug, Ready: row.UnmetCount == 0, WaitsFor: []api.TaskPrerequisite{}}
		for _, id := range row.DependsOn {
			if on, ok := byID[id]; ok && on.Status != "completed" {
				pending.WaitsFor = append(pending.WaitsFor, api.TaskPrerequisite{Slug: on.Slug, Status: api.TaskStatus(on.Status)})
			}
		}
		slices.SortFunc(pending.WaitsFor, func(a, b api.TaskPrerequisite) int { return strings.Compare(a.Slug, b.Slug) })
		out.Pending = append(out.Pending, pending)
	}
	return api.GetTaskGraph200JSONResponse(out), nil
}

// GetTaskCosts implements the contract's operation.
func (s *Server) GetTaskCosts(ctx context.Context, r api.GetTaskCostsRequestObject) (api.GetTaskCostsResponseObject, error) {
	_, graph, _, err := s.graphOf(ctx, r.ProjectId, r.Params.PathPrefix)
	if err != nil {
		return nil, err
	}
	out := api.TaskCosts{Items: []api.TaskCost{}}
	for _, t := range graph.Tasks {
		if t.Status == "completed" && !deref(r.Params.Completed) {
			continue
		}
		cost := api.TaskCost{Slug: t.ID, Success: taskgraph.Success(t.Risk), Weight: taskgraph.Weight(t.Impact), Attempt: taskgraph.Cost(t.Scope), Expected: taskgraph.Expected(t)}
		out.Total += cost.Expected
		out.Items = append(out.Items, cost)
	}
	slices.SortFunc(out.Items, func(a, b api.TaskCost) int { return strings.Compare(a.Slug, b.Slug) })
	return api.GetTaskCosts200JSONResponse(out), nil
}
