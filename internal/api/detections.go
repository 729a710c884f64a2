package api

import (
	"context"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
)

// ReportDetection implements the contract's operation.
func (s *Server) ReportDetection(ctx context.Context, r api.ReportDetectionRequestObject) (api.ReportDetectionResponseObject, error) {
	evidence, err := storable(r.Body.Evidence)
	if err != nil {
		return nil, at("/evidence", err)
	}
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.ReportDetection(ctx, db.ReportDetectionParams{
		SessionID: r.Body.SessionId, AnomalyType: r.Body.AnomalyType, Severity: (*string)(r.Body.Severity), Evidence: evidence.JSON, Metadata: metadata.JSON,
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows): // the session that the statement starts from
		return nil, refuse(db.DetectionsSessionIDFkey)
	case err != nil:
		return nil, err
	case row.Count > 1:
		return api.ReportDetection200JSONResponse{Body: detection(row), Headers: api.ReportDetection200ResponseHeaders{ETag: etag(row.Revision)}}, nil
	}
	return api.ReportDetection201JSONResponse{
		Body:    detection(row),
		Headers: api.ReportDetection201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/detections/" + row.ID.String()},
	}, nil
}

// GetDetection implements the contract's operation.
func (s *Server) GetDetection(ctx context.Context, r api.GetDetectionRequestObject) (api.GetDetectionResponseObject, error) {
	row, err := s.db.GetDetection(ctx, r.DetectionId)
	if err != nil {
		return nil, missing("detection", err)
	}
	return api.GetDetection200JSONResponse{Body: detection(row), Headers: api.GetDetection200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListDetections implements the contract's operation.
func (s *Server) ListDetections(ctx context.Context, r api.ListDetectionsRequestObject) (api.ListDetectionsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	before, err := before(r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListDetections(ctx, db.ListDetectionsParams{
		BeforeID: before, RowLimit: limit + 1, SessionID: r.Params.SessionId, ProjectID: r.Params.ProjectId, AnomalyType: r.Params.AnomalyType,
		Status: (*string)(r.Params.Status), Severity: (*string)(r.Params.Severity),
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(d db.Detection) uuid.UUID { return d.ID })
	return api.ListDetections200JSONResponse{Items: each(rows, detection), NextCursor: cursor}, nil
}

// AcknowledgeDetection implements the contract's operation.
func (s *Server) AcknowledgeDetection(ctx context.Context, r api.AcknowledgeDetectionRequestObject) (api.AcknowledgeDetectionResponseObject, error) {
	row, err := s.db.AcknowledgeDetection(ctx, r.DetectionId)
	if err != nil {
		return nil, missing("detection", err)
	}
	return api.AcknowledgeDetection200JSONResponse{Body: detection(row), Headers: api.AcknowledgeDetection200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ResolveDetection implements the contract's operation.
func (s *Server) ResolveDetection(ctx context.Context, r api.ResolveDetectionRequestObject) (api.ResolveDetectionResponseObject, error) {
	row, err := s.db.ResolveDetection(ctx, db.ResolveDetectionParams{ID: r.DetectionId, Resolution: string(r.Body.Resolution), Reason: deref(r.Body.Reason)})
	if err != nil {
		return nil, missing("detection", err)
	}
	return api.ResolveDetection200JSONResponse{Body: detection(row), Headers: api.ResolveDetection200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// Anomaly types -----------------------------------------------------------------------------------------------------

// CreateAnomalyType implements the contract's operation.
func (s *Server) CreateAnomalyType(ctx context.Context, r api.CreateAnomalyTypeRequestObject) (api.CreateAnomalyTypeResponseObject, error) {
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.CreateAnomalyType(ctx, db.CreateAnomalyTypeParams{
		Name: r.Body.Name, Severity: (*string)(r.Body.Severity), Description: deref(r.Body.Description), Metadata: metadata.JSON,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateAnomalyType201JSONResponse{
		Body:    anomalyType(row),
		Headers: api.CreateAnomalyType201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/anomaly-types/" + row.ID.String()},
	}, nil
}

// GetAnomalyType implements the contract's operation.
func (s *Server) GetAnomalyType(ctx context.Context, r api.GetAnomalyTypeRequestObject) (api.GetAnomalyTypeResponseObject, error) {
	row, err := s.db.GetAnomalyType(ctx, r.AnomalyTypeId)
	if err != nil {
		return nil, missing("anomaly_type", err)
	}
	return api.GetAnomalyType200JSONResponse{Body: anomalyType(row), Headers: api.GetAnomalyType200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListAnomalyTypes implements the contract's operation.
func (s *Server) ListAnomalyTypes(ctx context.Context, r api.ListAnomalyTypesRequestObject) (api.ListAnomalyTypesResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	name, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListAnomalyTypes(ctx, db.ListAnomalyTypesParams{AfterName: name, RowLimit: limit + 1})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(t db.AnomalyType) string { return t.Name })
	return api.ListAnomalyTypes200JSONResponse{Items: each(rows, anomalyType), NextCursor: cursor}, nil
}

// UpdateAnomalyType implements the contract's operation.
func (s *Server) UpdateAnomalyType(ctx context.Context, r api.UpdateAnomalyTypeRequestObject) (api.UpdateAnomalyTypeResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.UpdateAnomalyType(ctx, db.UpdateAnomalyTypeParams{
		ID: r.AnomalyTypeId, IfMatch: expected, Severity: (*string)(r.Body.Severity), Description: r.Body.Description, MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetAnomalyType(ctx, r.AnomalyTypeId); return missing("anomaly_type", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateAnomalyType200JSONResponse{Body: anomalyType(row), Headers: api.UpdateAnomalyType200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeleteAnomalyType implements the contract's operation.
func (s *Server) DeleteAnomalyType(ctx context.Context, r api.DeleteAnomalyTypeRequestObject) (api.DeleteAnomalyTypeResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteAnomalyType(ctx, db.DeleteAnomalyTypeParams{ID: r.AnomalyTypeId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetAnomalyType(ctx, r.AnomalyTypeId); return missing("anomaly_type", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteAnomalyType204Response{}, nil
}

// The watch policy --------------------------------------------------------------------------------------------------

// GetWatchPolicy implements the contract's operation.
func (s *Server) GetWatchPolicy(ctx context.Context, _ api.GetWatchPolicyRequestObject) (api.GetWatchPolicyResponseObject, error) {
	row, err := s.db.GetWatchPolicy(ctx)
	if err != nil {
		return nil, err
	}
	return api.GetWatchPolicy200JSONResponse{Body: watchPolicy(row), Headers: api.GetWatchPolicy200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// SetWatchPolicy implements the contract's operation.
func (s *Server) SetWatchPolicy(ctx context.Context, r api.SetWatchPolicyRequestObject) (api.SetWatchPolicyResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.SetWatchPolicy(ctx, db.SetWatchPolicyParams{
		IfMatch: expected, SetStallMinutes: r.Body.StallMinutes.IsSpecified(), StallMinutes: valueOrNull(r.Body.StallMinutes),
		SetErrorCount: r.Body.ErrorCount.IsSpecified(), ErrorCount: valueOrNull(r.Body.ErrorCount), ErrorMinutes: r.Body.ErrorMinutes,
		SetModelMinutes: r.Body.ModelMinutes.IsSpecified(), ModelMinutes: valueOrNull(r.Body.ModelMinutes), ModelBaselineHours: r.Body.ModelBaselineHours,
		ModelTurns: r.Body.ModelTurns, ModelErrorPercent: r.Body.ModelErrorPercent, ModelLatencyPercent: r.Body.ModelLatencyPercent,
		SetReportedDays: r.Body.ReportedDays.IsSpecified(), ReportedDays: valueOrNull(r.Body.ReportedDays), MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetWatchPolicy(ctx); return err })
	}
	if err != nil {
		return nil, err
	}
	return api.SetWatchPolicy200JSONResponse{Body: watchPolicy(row), Headers: api.SetWatchPolicy200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

func detection(d db.Detection) api.Detection {
	return api.Detection{
		Id: d.ID, ProjectId: d.ProjectID, SessionId: d.SessionID, AnomalyType: d.AnomalyType, Severity: api.Severity(d.Severity), Origin: api.DetectionOrigin(d.Origin),
		Status: api.DetectionStatus(d.Status), Resolution: (*api.DetectionResolution)(d.Resolution), Reason: d.Reason, Count: d.Count,
		FirstSeenAt: d.FirstSeenAt, LastSeenAt: d.LastSeenAt, AcknowledgedAt: d.AcknowledgedAt, AcknowledgedById: d.AcknowledgedByID, ResolvedAt: d.ResolvedAt, ResolvedById: d.ResolvedByID,
		Evidence: given(d.Evidence), Metadata: given(d.Metadata), Revision: d.Revision, CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt,
	}
}

func anomalyType(t db.AnomalyType) api.AnomalyType {
	return api.AnomalyType{
		Id: t.ID, Name: t.Name, Severity: api.Severity(t.Severity), Description: t.Description, BuiltIn: t.BuiltIn, Metadata: given(t.Metadata),
		Revision: t.Revision, CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
	}
}

func watchPolicy(p db.WatchPolicy) api.WatchPolicy {
	return api.WatchPolicy{
		StallMinutes: p.StallMinutes, ErrorCount: p.ErrorCount, ErrorMinutes: p.ErrorMinutes, ModelMinutes: p.ModelMinutes, ModelBaselineHours: p.ModelBaselineHours,
		ModelTurns: p.ModelTurns, ModelErrorPercent: p.ModelErrorPercent, ModelLatencyPercent: p.ModelLatencyPercent, ReportedDays: p.ReportedDays,
		Metadata: given(p.Metadata), Revision: p.Revision, CreatedAt: p.CreatedAt, UpdatedAt: p.UpdatedAt,
	}
}
