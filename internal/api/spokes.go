package api

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/schemas"
)

// RegisterSpoke implements the contract's operation.
func (s *Server) RegisterSpoke(ctx context.Context, r api.RegisterSpokeRequestObject) (api.RegisterSpokeResponseObject, error) {
	data, metadata, err := storables(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.RegisterSpoke(ctx, db.RegisterSpokeParams{
		Name: r.Body.Name, Version: deref(r.Body.Version), Data: data.JSON, Metadata: metadata.JSON,
		LeaseSeconds: defaultTo(deref(r.Body.LeaseSeconds), 30), GraceSeconds: valueOr(r.Body.GraceSeconds, 60),
	})
	if err != nil {
		return nil, err
	}
	s.waiters.wake(row.ID) // a take of the connection before learns that it has ended
	return api.RegisterSpoke200JSONResponse{
		Body:    spoke(row),
		Headers: api.RegisterSpoke200ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/spokes/" + row.ID.String()},
	}, nil
}

// GetSpoke implements the contract's operation.
func (s *Server) GetSpoke(ctx context.Context, r api.GetSpokeRequestObject) (api.GetSpokeResponseObject, error) {
	row, err := s.db.GetSpoke(ctx, r.SpokeId)
	if err != nil {
		return nil, missing("spoke", err)
	}
	return api.GetSpoke200JSONResponse{Body: spoke(row), Headers: api.GetSpoke200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListSpokes implements the contract's operation.
func (s *Server) ListSpokes(ctx context.Context, r api.ListSpokesRequestObject) (api.ListSpokesResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	name, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListSpokes(ctx, db.ListSpokesParams{
		AfterName: name, Status: (*string)(r.Params.Status), AccountID: r.Params.AccountId, RowLimit: limit + 1,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(row db.Spoke) string { return row.Name })
	return api.ListSpokes200JSONResponse{Items: each(rows, spoke), NextCursor: cursor}, nil
}

// HeartbeatSpoke implements the contract's operation.
func (s *Server) HeartbeatSpoke(ctx context.Context, r api.HeartbeatSpokeRequestObject) (api.HeartbeatSpokeResponseObject, error) {
	row, err := s.db.HeartbeatSpoke(ctx, db.HeartbeatSpokeParams{ID: r.SpokeId, Epoch: r.Body.Epoch})
	if err != nil {
		return nil, missing("spoke", err)
	}
	return api.HeartbeatSpoke200JSONResponse(spoke(row)), nil
}

// DisconnectSpoke implements the contract's operation.
func (s *Server) DisconnectSpoke(ctx context.Context, r api.DisconnectSpokeRequestObject) (api.DisconnectSpokeResponseObject, error) {
	row, err := s.db.DisconnectSpoke(ctx, db.DisconnectSpokeParams{ID: r.SpokeId, Epoch: r.Body.Epoch})
	if err != nil {
		return nil, missing("spoke", err)
	}
	s.waiters.wake(row.ID)
	return api.DisconnectSpoke200JSONResponse(spoke(row)), nil
}

// Operations --------------------------------------------------------------------------------------------------------

// offer is an operation as PutOperations reads it, with the names of the columns.
type offer struct {
	Namespace    string          `json:"namespace"`
	Name         string          `json:"name"`
	Kind         string          `json:"kind"`
	Version      string          `json:"version"`
	Title        string          `json:"title"`
	Description  string          `json:"description"`
	InputSchema  json.RawMessage `json:"input_schema"`
	OutputSchema json.RawMessage `json:"output_schema"`
	ErrorSchema  json.RawMessage `json:"error_schema"`
	ScopesAll    []string        `json:"scopes_all"`
	ScopesAny    []string        `json:"scopes_any"`
	RedactPaths  []string        `json:"redact_paths"`
	PayloadLimit *int32          `json:"payload_limit"`
	MaxAttempts  int32           `json:"max_attempts"`
	Visibility   string          `json:"visibility"`
	Annotations  json.RawMessage `json:"annotations"`
	Metadata     json.RawMessage `json:"metadata"`
}

// PutOperations implements the contract's operation: the whole set in one statement.
func (s *Server) PutOperations(ctx context.Context, r api.PutOperationsRequestObject) (api.PutOperationsResponseObject, error) {
	offers := make([]offer, len(r.Body.Operations))
	seen := map[[2]string]bool{}
	for i, o := range r.Body.Operations {
		pointer := fmt.Sprintf("/operations/%d", i)
		if seen[[2]string{o.Namespace, o.Name}] {
			return nil, refuse("operation_twice", api.FieldError{Pointer: pointer + "/name", Message: "occurs before with the same namespace"})
		}
		seen[[2]string{o.Namespace, o.Name}] = true
		var err error
		if offers[i], err = newOffer(o); err != nil {
			return nil, within(pointer, err)
		}
	}
	text, err := json.Marshal(offers)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.PutOperations(ctx, db.PutOperationsParams{SpokeID: r.SpokeId, Epoch: r.Body.Epoch, Operations: text})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 { // nothing offered before or now, or no spoke
		if _, err := s.db.GetSpoke(ctx, r.SpokeId); err != nil {
			return nil, missing("spoke", err)
		}
	}
	change := api.PutOperations200JSONResponse{Created: []string{}, Updated: []string{}, Unchanged: []string{}, Removed: []string{}}
	for _, row := range rows {
		list := map[string]*[]string{"created": &change.Created, "updated": &change.Updated, "unchanged": &change.Unchanged, "removed": &change.Removed}[row.Change]
		*list = append(*list, row.QualifiedName)
	}
	return change, nil
}

func newOffer(o api.OperationOffer) (offer, error) {
	made := offer{
		Namespace: o.Namespace, Name: o.Name, Kind: string(o.Kind), Version: valueOr(o.Version, "1"), Title: deref(o.Title), Description: deref(o.Description),
		ScopesAll: notNil(deref(o.ScopesAll)), ScopesAny: notNil(deref(o.ScopesAny)), RedactPaths: notNil(deref(o.RedactPaths)),
		PayloadLimit: o.PayloadLimit, MaxAttempts: valueOr(o.MaxAttempts, 1), Visibility: string(valueOr(o.Visibility, api.OperationVisibilityOrganization)),
	}
	for _, part := range []struct {
		pointer   string
		given     *json.RawMessage
		otherwise string
		into      *json.RawMessage
	}{
		{"/inputSchema", o.InputSchema, `{"type":"object"}`, &made.InputSchema},
		{"/outputSchema", o.OutputSchema, "null", &made.OutputSchema},
		{"/errorSchema", o.ErrorSchema, "null", &made.ErrorSchema},
	} {
		*part.into = json.RawMessage(part.otherwise)
		if part.given == nil {
			continue
		}
		if _, err := schemas.Compile(*part.given); err != nil {
			return offer{}, refuse("operation_schema_invalid", api.FieldError{Pointer: part.pointer, Message: "is no JSON Schema: " + err.Error()})
		}
		text, err := storable(part.given)
		if err != nil {
			return offer{}, at(part.pointer, err)
		}
		*part.into = text.JSON
	}
	metadata, err := storable(o.Metadata)
	if err != nil {
		return offer{}, at("/metadata", err)
	}
	made.Metadata = metadata.JSON
	if made.Annotations, err = json.Marshal(deref(o.Annotations)); err != nil {
		return offer{}, err
	}
	return made, nil
}

// ListOperations implements the contract's operation.
func (s *Server) ListOperations(ctx context.Context, r api.ListOperationsRequestObject) (api.ListOperationsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	name, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListOperations(ctx, db.ListOperationsParams{
		AfterName: name, SpokeID: r.Params.SpokeId, Namespace: r.Params.Namespace, Name: r.Params.Name, Kind: (*string)(r.Params.Kind), RowLimit: limit + 1,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(row db.OperationSpec) string { return row.QualifiedName })
	return api.ListOperations200JSONResponse{Items: each(rows, operationOf), NextCursor: cursor}, nil
}

// GetOperation implements the contract's operation.
func (s *Server) GetOperation(ctx context.Context, r api.GetOperationRequestObject) (api.GetOperationResponseObject, error) {
	row, err := s.db.GetOperation(ctx, r.OperationName)
	if err != nil {
		return nil, missing("operation", err)
	}
	return api.GetOperation200JSONResponse{Body: operationOf(row), Headers: api.GetOperation200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// Rows to the contract's values --------------------------------------------------------------------------------------

func spoke(row db.Spoke) api.Spoke {
	now := time.Now()
	return api.Spoke{
		Id: row.ID, Name: row.Name, AccountId: row.AccountID, Status: api.SpokeStatus(row.Status), Epoch: row.Epoch, Version: row.Version,
		Ready:        row.Status == "connected" && row.LeaseExpiresAt.After(now) && row.TakeExpiresAt != nil && row.TakeExpiresAt.After(now),
		LeaseSeconds: row.LeaseSeconds, GraceSeconds: row.GraceSeconds, LeaseExpiresAt: row.LeaseExpiresAt, ConnectedAt: row.ConnectedAt, DisconnectedAt: row.DisconnectedAt,
		Data: given(row.Data), Metadata: given(row.Metadata), Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
}

func operationOf(row db.OperationSpec) api.Operation {
	return api.Operation{
		Id: row.ID, SpokeId: row.SpokeID, Namespace: row.Namespace, Name: row.Name, QualifiedName: row.QualifiedName, Kind: api.OperationKind(row.Kind),
		Version: row.Version, Title: row.Title, Description: row.Description,
		InputSchema: given(row.InputSchema), OutputSchema: givenOrAbsent(row.OutputSchema), ErrorSchema: givenOrAbsent(row.ErrorSchema),
		ScopesAll: row.ScopesAll, ScopesAny: row.ScopesAny, RedactPaths: row.RedactPaths, PayloadLimit: row.PayloadLimit, MaxAttempts: row.MaxAttempts,
		Visibility: api.OperationVisibility(row.Visibility), Annotations: given(row.Annotations), Metadata: given(row.Metadata),
		Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
	}
}
