package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/schemas"
	"github.com/alkdev/hub/internal/store"
)

// Calls through the hub ----------------------------------------------------------------------------------------------

// CallOperation implements the contract's operation.
func (s *Server) CallOperation(ctx context.Context, r api.CallOperationRequestObject) (api.CallOperationResponseObject, error) {
	if s.keys.Load().Primary() == 0 {
		return nil, refuse("encryption_not_configured")
	}
	call, err := s.makeCall(ctx, r.OperationName, r.Body)
	if err != nil {
		return nil, err
	}
	if !store.InTx(ctx) {
		if call, err = s.awaitCall(ctx, call, patience(ctx, valueOr(r.Body.WaitSeconds, 20))); err != nil {
			return nil, err
		}
	}
	result := api.CallResult{Call: callOf(call)}
	if call.EndedAt == nil {
		return api.CallOperation202JSONResponse(result), nil
	}
	if call.Status == "completed" {
		output, exact, err := s.outputOf(ctx, call)
		if err != nil {
			return nil, err
		}
		result.Output, result.Exact = &output, &exact
	}
	return api.CallOperation200JSONResponse(result), nil
}

// makeCall finds who does the operation and gives it the call, or finds the call that was made under the request id.
func (s *Server) makeCall(ctx context.Context, name string, body *api.OperationCall) (db.Call, error) {
	input := json.RawMessage("{}")
	if body.Input != nil {
		input = *body.Input
	}
	stored, err := pgjson.Escape(input)
	if err != nil {
		return db.Call{}, at("/input", err)
	}
	metadata, err := storable(body.Metadata)
	if err != nil {
		return db.Call{}, at("/metadata", err)
	}
	for range 3 { // operations may change between the look and the call
		if call, err := s.madeBefore(ctx, name, body.RequestId); !errors.Is(err, pgx.ErrNoRows) {
			return call, err
		}
		spec, err := s.db.FindOperation(ctx, name)
		if err != nil {
			return db.Call{}, missing("operation", err)
		}
		if faults := s.faults(spec.ID, spec.Revision, "input", spec.InputSchema, input); len(faults) > 0 {
			return db.Call{}, refuse("call_input_invalid", faults...)
		}
		id := uuid.Must(uuid.NewV7())
		version, ciphertext, err := s.seal(store.CallerFrom(ctx).OrgID, id, "input", input)
		if err != nil {
			return db.Call{}, err
		}
		call, err := s.db.EnqueueCall(ctx, db.EnqueueCallParams{
			ID: id, SpecID: spec.ID, SpecRevision: spec.Revision, Pinned: name == spec.QualifiedName, RequestID: body.RequestId, ParentID: body.ParentId,
			SessionID: actingIn(ctx, body.SessionId), TimeoutSeconds: valueOr(body.TimeoutSeconds, 300), Input: stored.JSON, Metadata: metadata.JSON,
			KeyVersion: version, Ciphertext: ciphertext,
		})
		var pgErr *pgconn.PgError
		switch {
		case err == nil:
			s.waiters.wake(*call.SpokeID)
			return call, nil
		case errors.Is(err, pgx.ErrNoRows):
		case errors.As(err, &pgErr) && pgErr.ConstraintName == db.CallsRequestIDKey && !store.InTx(ctx): // the same call was faster
		default:
			return db.Call{}, err
		}
	}
	return db.Call{}, refuse("try_again")
}

// madeBefore is the call that was made under this request id; pgx.ErrNoRows where there is none.
func (s *Server) madeBefore(ctx context.Context, name string, requestID *string) (db.Call, error) {
	if requestID == nil {
		return db.Call{}, pgx.ErrNoRows
	}
	call, err := s.db.GetCallByRequest(ctx, *requestID)
	if err != nil {
		return db.Call{}, err
	}
	caller := store.CallerFrom(ctx)
	qualified := ""
	if namespace, rest, _ := strings.Cut(call.Operation, "."); call.SpokeID != nil {
		qualified = namespace + "." + call.SpokeID.String() + "." + rest
	}
	if !call.Routed || call.CallerAccountID == nil || *call.CallerAccountID != caller.AccountID || name != call.Operation && name != qualified {
		return db.Call{}, refuse(db.CallsRequestIDKey, api.FieldError{Pointer: "/requestId", Message: "is another call's"})
	}
	return call, nil
}

// awaitCall waits until the call is over, or it is time.
func (s *Server) awaitCall(ctx context.Context, call db.Call, until time.Time) (db.Call, error) {
	bell, done := s.wait(call.OrgID, call.ID)
	defer done()
	for call.EndedAt == nil && s.rings(ctx, bell, until) {
		var err error
		if call, err = s.db.GetCall(ctx, call.ID); err != nil {
			return call, err
		}
	}
	return call, nil
}

// outputOf is what a call put out: to the letter, the first time that its caller asks; else what was written down.
func (s *Server) outputOf(ctx context.Context, call db.Call) (output json.RawMessage, exact bool, err error) {
	row, err := s.db.FetchOutput(ctx, call.ID)
	if err == nil {
		output, err = s.open(call.OrgID, call.ID, "output", row.KeyVersion, row.Ciphertext)
		if err == nil {
			return output, true, nil
		}
	} else if !errors.Is(err, pgx.ErrNoRows) {
		return nil, false, err
	}
	if call.Output == nil {
		return json.RawMessage("null"), false, nil
	}
	return given(call.Output), false, nil
}

// faults are what is wrong with a payload, held against its operation's schema.
func (s *Server) faults(spec uuid.UUID, revision int32, what string, schema, payload json.RawMessage) []api.FieldError {
	key := schemaKey{spec, revision, what}
	compiled, ok := s.schemas.Get(key)
	if !ok {
		var err error
		if compiled, err = schemas.Compile(given(schema)); err != nil { // written past the API
			return []api.FieldError{{Pointer: "/" + what, Message: "cannot be held against the operation's schema, which is none"}}
		}
		s.schemas.Add(key, compiled)
	}
	return schemaFaults("/"+what, compiled.Validate(payload))
}

type schemaKey struct {
	spec     uuid.UUID
	revision int32
	what     string
}

// Payloads on their way (W18): encrypted, and bound to their call and direction ---------------------------------------

func payloadContext(org, call uuid.UUID, direction string) []byte {
	context := append([]byte("hub/call-payload\x00"), org[:]...)
	return append(append(context, call[:]...), direction...)
}

func (s *Server) seal(org, call uuid.UUID, direction string, payload []byte) (version int32, ciphertext []byte, err error) {
	ring := s.keys.Load()
	ciphertext, err = ring.Seal(ring.Primary(), payload, payloadContext(org, call, direction))
	return ring.Primary(), ciphertext, err
}

func (s *Server) open(org, call uuid.UUID, direction string, version int32, ciphertext []byte) (json.RawMessage, error) {
	return s.keys.Load().Open(version, ciphertext, payloadContext(org, call, direction))
}

// The spoke's side ---------------------------------------------------------------------------------------------------

// takenBytes is how much of inputs one take gets, at least one.
const takenBytes = 8 << 20

// TakeCalls implements the contract's operation: a long poll that holds no connection to the database while it waits.
func (s *Server) TakeCalls(ctx context.Context, r api.TakeCallsRequestObject) (api.TakeCallsResponseObject, error) {
	until := patience(ctx, valueOr(r.Body.WaitSeconds, 20))
	var bell <-chan struct{}
	for {
		rows, err := s.db.TakeCalls(ctx, db.TakeCallsParams{
			SpokeID: r.SpokeId, Epoch: r.Body.Epoch, MaxCalls: valueOr(r.Body.MaxCalls, 1), MaxBytes: takenBytes, WaitSeconds: int32(max(0, time.Until(until)).Seconds()),
		})
		switch {
		case err != nil:
			return nil, err
		case len(rows) == 0:
			return nil, notFound("spoke")
		case len(rows) > 1 || store.InTx(ctx) || !time.Now().Before(until):
			return s.taken(ctx, r, rows)
		}
		if bell == nil {
			var done func()
			bell, done = s.wait(store.CallerFrom(ctx).OrgID, r.SpokeId)
			defer done()
		}
		if !s.rings(ctx, bell, until) {
			if errors.Is(ctx.Err(), context.Canceled) { // its spoke is gone, most likely for good
				return nil, s.leaveTake(ctx, r, rows[0].DeadlineAt)
			}
			return s.taken(ctx, r, nil)
		}
		if r.Body.MaxCalls != nil && *r.Body.MaxCalls == 0 { // calls that it has no room for ring as well
			s.rings(ctx, nil, time.Now().Add(time.Second))
		}
	}
}

// leaveTake sees to it that nobody waits for a spoke that waits no more.
func (s *Server) leaveTake(ctx context.Context, r api.TakeCallsRequestObject, expires time.Time) error {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.db.LeaveTake(last, db.LeaveTakeParams{ID: r.SpokeId, Epoch: r.Body.Epoch, TakeExpiresAt: &expires}); err != nil {
		s.Log.Warn("a spoke that is gone", "spoke", r.SpokeId.String(), "cause", logged(err))
	}
	return ctx.Err()
}

// taken opens the inputs. One that cannot be opened fails its call: nobody will ever be able to.
func (s *Server) taken(ctx context.Context, r api.TakeCallsRequestObject, rows []db.TakeCallsRow) (api.TakeCallsResponseObject, error) {
	answer := api.TakeCalls200JSONResponse{Calls: []api.TakenCall{}, Stopped: []uuid.UUID{}}
	for _, row := range rows {
		switch {
		case row.Held:
			continue
		case row.Stopped:
			answer.Stopped = append(answer.Stopped, row.ID)
			continue
		}
		input, err := s.open(store.CallerFrom(ctx).OrgID, row.ID, "input", row.KeyVersion, row.Ciphertext)
		if err != nil {
			s.Log.Error("an input cannot be decrypted", "call", row.ID.String(), "cause", err)
			if err := s.failUnopened(ctx, r, row.ID); err != nil {
				return nil, err
			}
			continue
		}
		answer.Calls = append(answer.Calls, api.TakenCall{
			Id: row.ID, Operation: row.Operation, Attempt: row.Attempt, ParentId: orNil(row.ParentID), SessionId: orNil(row.SessionID), CallerAccountId: orNil(row.CallerAccountID),
			Identity: given(row.Identity), Metadata: given(row.Metadata), DeadlineAt: row.DeadlineAt, Input: input,
		})
	}
	return answer, nil
}

func (s *Server) failUnopened(ctx context.Context, r api.TakeCallsRequestObject, id uuid.UUID) error {
	code := "input_unavailable"
	_, err := s.db.StepCall(ctx, db.StepCallParams{ID: id, SpokeID: r.SpokeId, Epoch: r.Body.Epoch, Status: "failed", ErrorCode: &code})
	if err == nil {
		s.waiters.wake(id)
	}
	return err
}

func orNil(id uuid.UUID) *uuid.UUID {
	if id == uuid.Nil {
		return nil
	}
	return &id
}

// StartCall implements the contract's operation.
func (s *Server) StartCall(ctx context.Context, r api.StartCallRequestObject) (api.StartCallResponseObject, error) {
	row, err := s.step(ctx, db.StepCallParams{ID: r.CallId, SpokeID: r.Body.SpokeId, Epoch: r.Body.Epoch, Status: "running"})
	if err != nil {
		return nil, err
	}
	return api.StartCall200JSONResponse{Body: callOf(row), Headers: api.StartCall200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// CompleteCall implements the contract's operation.
func (s *Server) CompleteCall(ctx context.Context, r api.CompleteCallRequestObject) (api.CompleteCallResponseObject, error) {
	output := json.RawMessage("null")
	if r.Body.Output != nil {
		output = *r.Body.Output
	}
	stored, err := pgjson.Escape(output)
	if err != nil {
		return nil, at("/output", err)
	}
	spec, err := s.db.GetOutputSchema(ctx, r.CallId)
	if err != nil {
		return nil, missing("call", err)
	}
	if spec.OutputSchema != nil {
		if faults := s.faults(deref(spec.ID), deref(spec.Revision), "output", spec.OutputSchema, output); len(faults) > 0 {
			return nil, refuse("call_output_invalid", faults...)
		}
	}
	step := db.StepCallParams{ID: r.CallId, SpokeID: r.Body.SpokeId, Epoch: r.Body.Epoch, Status: "completed", Output: stored.JSON}
	if s.keys.Load().Primary() != 0 {
		version, ciphertext, err := s.seal(store.CallerFrom(ctx).OrgID, r.CallId, "output", output)
		if err != nil {
			return nil, err
		}
		step.KeyVersion, step.Ciphertext = &version, ciphertext
	}
	row, err := s.step(ctx, step)
	if err != nil {
		return nil, err
	}
	return api.CompleteCall200JSONResponse{Body: callOf(row), Headers: api.CompleteCall200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// FailCall implements the contract's operation.
func (s *Server) FailCall(ctx context.Context, r api.FailCallRequestObject) (api.FailCallResponseObject, error) {
	fault, err := storableValue("/error", r.Body.Error)
	if err != nil {
		return nil, err
	}
	row, err := s.step(ctx, db.StepCallParams{ID: r.CallId, SpokeID: r.Body.SpokeId, Epoch: r.Body.Epoch, Status: "failed", Error: fault, ErrorCode: &r.Body.Code})
	if err != nil {
		return nil, err
	}
	return api.FailCall200JSONResponse{Body: callOf(row), Headers: api.FailCall200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// step is a step of a call by the spoke that holds it.
func (s *Server) step(ctx context.Context, step db.StepCallParams) (db.Call, error) {
	row, err := s.db.StepCall(ctx, step)
	if err == nil && row.EndedAt != nil {
		s.waiters.wake(row.ID)
	}
	return row, missing("call", err)
}

// AbortCall implements the contract's operation.
func (s *Server) AbortCall(ctx context.Context, r api.AbortCallRequestObject) (api.AbortCallResponseObject, error) {
	var row db.Call
	var err error
	switch {
	case (r.Body.SpokeId == nil) != (r.Body.Epoch == nil):
		return nil, refuse("invalid_request", api.FieldError{Pointer: "/epoch", Message: "goes with spokeId"})
	case r.Body.SpokeId != nil:
		var fault json.RawMessage
		if r.Body.Reason != nil {
			if fault, err = json.Marshal(map[string]string{"message": *r.Body.Reason}); err != nil {
				return nil, err
			}
		}
		code := "aborted"
		row, err = s.step(ctx, db.StepCallParams{ID: r.CallId, SpokeID: *r.Body.SpokeId, Epoch: *r.Body.Epoch, Status: "aborted", Error: fault, ErrorCode: &code})
	default:
		row, err = s.db.AbortCall(ctx, db.AbortCallParams{ID: r.CallId, Reason: r.Body.Reason})
		if err == nil {
			s.waiters.wake(row.ID)
			if row.SpokeID != nil {
				s.waiters.wake(*row.SpokeID)
			}
		}
	}
	if err != nil {
		return nil, missing("call", err)
	}
	return api.AbortCall200JSONResponse{Body: callOf(row), Headers: api.AbortCall200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// What is written down -----------------------------------------------------------------------------------------------

// RecordCall implements the contract's operation.
func (s *Server) RecordCall(ctx context.Context, r api.RecordCallRequestObject) (api.RecordCallResponseObject, error) {
	b := r.Body
	record := db.RecordCallParams{
		RequestID: b.RequestId, Operation: b.Operation, Kind: (*string)(b.Kind), Status: string(b.Status), ParentID: b.ParentId, SessionID: actingIn(ctx, b.SessionId),
		RedactPaths: notNil(deref(b.RedactPaths)), PayloadLimit: b.PayloadLimit, ErrorCode: b.ErrorCode, StartedAt: b.StartedAt,
	}
	switch now, recorder := time.Now(), "recorder"; b.Status {
	case api.CallRecordStatusCompleted, api.CallRecordStatusFailed, api.CallRecordStatusAborted:
		record.EndedAt, record.EndedBy = b.EndedAt, &recorder
		if b.EndedAt == nil {
			record.EndedAt = &now
		}
	default:
		if b.EndedAt != nil {
			return nil, refuse("invalid_request", api.FieldError{Pointer: "/endedAt", Message: "goes with a status that is an end"})
		}
		if b.Status == api.CallRecordStatusRunning && b.StartedAt == nil {
			record.StartedAt = &now
		}
	}
	var err error
	for pointer, part := range map[string]struct {
		given *json.RawMessage
		into  *json.RawMessage
	}{"/input": {b.Input, &record.Input}, "/output": {b.Output, &record.Output}, "/error": {b.Error, &record.Error}} {
		if *part.into, err = storableValue(pointer, part.given); err != nil {
			return nil, err
		}
	}
	metadata, err := storable(b.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	record.Metadata = metadata.JSON
	row, err := s.db.RecordCall(ctx, record)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, refuse(db.CallsRequestIDKey, api.FieldError{Pointer: "/requestId", Message: "is another call's"})
	}
	if err != nil {
		return nil, err
	}
	if row.Created {
		return api.RecordCall201JSONResponse{Body: callOf(row.Call), Headers: api.RecordCall201ResponseHeaders{ETag: etag(row.Call.Revision), Location: "/v1/calls/" + row.Call.ID.String()}}, nil
	}
	return api.RecordCall200JSONResponse{Body: callOf(row.Call), Headers: api.RecordCall200ResponseHeaders{ETag: etag(row.Call.Revision)}}, nil
}

// GetCall implements the contract's operation.
func (s *Server) GetCall(ctx context.Context, r api.GetCallRequestObject) (api.GetCallResponseObject, error) {
	row, err := s.db.GetCall(ctx, r.CallId)
	if err != nil {
		return nil, missing("call", err)
	}
	return api.GetCall200JSONResponse{Body: callOf(row), Headers: api.GetCall200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListCalls implements the contract's operation.
func (s *Server) ListCalls(ctx context.Context, r api.ListCallsRequestObject) (api.ListCallsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	before, err := before(r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListCalls(ctx, db.ListCallsParams{
		BeforeID: before, Operation: r.Params.Operation, Status: (*string)(r.Params.Status), CallerAccountID: r.Params.CallerAccountId, SessionID: r.Params.SessionId,
		SpokeID: r.Params.SpokeId, ParentID: r.Params.ParentId, RequestID: r.Params.RequestId, RowLimit: limit + 1,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(row db.Call) uuid.UUID { return row.ID })
	return api.ListCalls200JSONResponse{Items: each(rows, callOf), NextCursor: cursor}, nil
}

// GetCallTree implements the contract's operation.
func (s *Server) GetCallTree(ctx context.Context, r api.GetCallTreeRequestObject) (api.GetCallTreeResponseObject, error) {
	limit := int(valueOr(r.Params.Limit, 200))
	rows, err := s.db.GetCallTree(ctx, db.GetCallTreeParams{ID: r.CallId, MaxDepth: valueOr(r.Params.Depth, 20), RowLimit: int32(limit + 1)})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, notFound("call")
	}
	tree := api.GetCallTree200JSONResponse{Nodes: []api.CallNode{}, Edges: []api.CallEdge{}, Truncated: len(rows) > limit}
	shown := map[uuid.UUID]bool{}
	rows = rows[:min(len(rows), limit)]
	for _, row := range rows {
		shown[row.Call.ID] = true
	}
	for _, row := range rows {
		tree.Nodes = append(tree.Nodes, api.CallNode{Depth: row.Depth, Call: callOf(row.Call)})
		if row.Call.ParentID != nil && shown[*row.Call.ParentID] {
			tree.Edges = append(tree.Edges, api.CallEdge{SourceCallId: *row.Call.ParentID, TargetCallId: row.Call.ID, Type: "triggered", CreatedAt: row.Call.CreatedAt})
		}
		var edges []api.CallEdge
		if err := json.Unmarshal(row.Edges, &edges); err != nil {
			return nil, err
		}
		for _, edge := range edges {
			if shown[edge.TargetCallId] {
				tree.Edges = append(tree.Edges, edge)
			}
		}
	}
	return tree, nil
}

// AddCallEdges implements the contract's operation.
func (s *Server) AddCallEdges(ctx context.Context, r api.AddCallEdgesRequestObject) (api.AddCallEdgesResponseObject, error) {
	add := db.AddCallEdgesParams{SourceCallID: r.CallId}
	for i, edge := range r.Body.Edges {
		if edge.Type == "triggered" {
			return nil, refuse(db.CallEdgeRowsNotTriggeredCheck, api.FieldError{Pointer: fmt.Sprintf("/edges/%d/type", i), Message: "is said by a call's parentId alone"})
		}
		add.TargetCallIds, add.Types = append(add.TargetCallIds, edge.TargetCallId), append(add.Types, edge.Type)
	}
	if _, err := s.db.GetCall(ctx, r.CallId); err != nil {
		return nil, missing("call", err)
	}
	rows, err := s.db.AddCallEdges(ctx, add)
	if err != nil {
		return nil, err
	}
	return api.AddCallEdges200JSONResponse{Items: each(rows, func(row db.AddCallEdgesRow) api.CallEdge { return edgeOf(db.ListCallEdgesRow(row)) })}, nil
}

// edgeKey is where a page of edges ends.
type edgeKey struct {
	Source, Target uuid.UUID
	Type           string
}

// ListCallEdges implements the contract's operation.
func (s *Server) ListCallEdges(ctx context.Context, r api.ListCallEdgesRequestObject) (api.ListCallEdgesResponseObject, error) {
	limit := pageSize(r.Params.Limit)
	last, found, err := after[edgeKey](r.Params.Cursor, r.CallId)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListCallEdges(ctx, db.ListCallEdgesParams{CallID: r.CallId, AfterSource: last.Source, AfterTarget: last.Target, AfterType: last.Type, RowLimit: limit + 1})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 && !found {
		if _, err := s.db.GetCall(ctx, r.CallId); err != nil {
			return nil, missing("call", err)
		}
	}
	rows, cursor := next(rows, limit, r.CallId, func(row db.ListCallEdgesRow) edgeKey { return edgeKey{row.SourceCallID, row.TargetCallID, row.Type} })
	return api.ListCallEdges200JSONResponse{Items: each(rows, edgeOf), NextCursor: cursor}, nil
}

// GetCallStats implements the contract's operation.
func (s *Server) GetCallStats(ctx context.Context, r api.GetCallStatsRequestObject) (api.GetCallStatsResponseObject, error) {
	span := r.Params.Until.Sub(r.Params.Since)
	if span <= 0 {
		return nil, refuse("invalid_request", api.FieldError{Pointer: "query:until", Message: "must be after since"})
	}
	rows, err := s.db.GetCallStats(ctx, db.GetCallStatsParams{Since: r.Params.Since, Until: r.Params.Until, Operation: r.Params.Operation})
	if err != nil {
		return nil, err
	}
	return api.GetCallStats200JSONResponse{Items: each(rows, func(row db.GetCallStatsRow) api.OperationStats {
		return api.OperationStats{
			Operation: row.Operation, Calls: row.Calls, Completed: row.Completed, Failed: row.Failed, Aborted: row.Aborted,
			PerSecond: float64(row.Calls) / span.Seconds(), ErrorRate: float64(row.Failed) / float64(row.Calls),
			P50Ms: measured(row.P50), P95Ms: measured(row.P95), P99Ms: measured(row.P99),
		}
	})}, nil
}

// measured is nil where nothing was.
func measured(ms float64) *float64 {
	if ms < 0 {
		return nil
	}
	return &ms
}

// storableValue is any JSON value as jsonb holds it; an absent one is NULL.
func storableValue(pointer string, value *json.RawMessage) (json.RawMessage, error) {
	if value == nil {
		return nil, nil
	}
	text, err := pgjson.Escape(*value)
	return text.JSON, at(pointer, err)
}

// actingIn is the session that the body names, or the one that the caller acts in.
func actingIn(ctx context.Context, named *uuid.UUID) *uuid.UUID {
	if named != nil {
		return named
	}
	return store.CallerFrom(ctx).SessionID
}

// Rows to the contract's values --------------------------------------------------------------------------------------

func callOf(row db.Call) api.Call {
	return api.Call{
		Id: row.ID, RequestId: row.RequestID, Routed: row.Routed, Operation: row.Operation, Kind: row.Kind, Status: api.CallStatus(row.Status),
		ParentId: row.ParentID, SessionId: row.SessionID, CallerAccountId: row.CallerAccountID, Identity: given(row.Identity),
		SpokeId: row.SpokeID, Attempts: row.Attempts, MaxAttempts: row.MaxAttempts,
		Input: givenOrAbsent(row.Input), Output: givenOrAbsent(row.Output), Error: givenOrAbsent(row.Error), ErrorCode: row.ErrorCode, EndedBy: row.EndedBy,
		DeadlineAt: row.DeadlineAt, DispatchedAt: row.DispatchedAt, StartedAt: row.StartedAt, EndedAt: row.EndedAt, PayloadsExpiredAt: row.PayloadsExpiredAt,
		Metadata: given(row.Metadata), Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
}

func edgeOf(row db.ListCallEdgesRow) api.CallEdge {
	return api.CallEdge{SourceCallId: row.SourceCallID, TargetCallId: row.TargetCallID, Type: row.Type, CreatedAt: row.CreatedAt}
}
