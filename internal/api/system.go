package api

import (
	"context"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/migrate"
)

// GetHealth answers as long as the process does.
func (s *Server) GetHealth(context.Context, api.GetHealthRequestObject) (api.GetHealthResponseObject, error) {
	return api.GetHealth200JSONResponse{Status: api.HealthStatusOk, Checks: map[string]string{}}, nil
}

// GetReadiness asks the database, with little patience.
func (s *Server) GetReadiness(ctx context.Context, _ api.GetReadinessRequestObject) (api.GetReadinessResponseObject, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	health := api.Health{Status: api.HealthStatusOk, Checks: map[string]string{"database": "ok"}}
	var lacking []db.ListOtherEncryptionKeysRow
	err := s.store.Conn(ctx, func(conn *pgx.Conn) error {
		if err := migrate.Check(ctx, conn); err != nil {
			return err
		}
		var err error
		lacking, err = db.New(conn).ListOtherEncryptionKeys(ctx, held(s.keys.Load()))
		return err
	})
	if err != nil {
		s.Log.ErrorContext(ctx, "not ready", "cause", logged(err))
		health.Status = api.HealthStatusUnavailable
		health.Checks["database"] = "does not answer, or its schema is not this hub's"
		return api.GetReadiness503JSONResponse(health), nil
	}
	health.Checks["encryption"] = "ok"
	if text := missingKeys(lacking); text != "" { // these secrets answer 424; everything else is served
		health.Checks["encryption"] = text
	} else if s.keys.Load().Primary() == 0 {
		health.Checks["encryption"] = "there is no key: secrets cannot be put"
	}
	return api.GetReadiness200JSONResponse(health), nil
}

// GetVersion names what is running.
func (s *Server) GetVersion(context.Context, api.GetVersionRequestObject) (api.GetVersionResponseObject, error) {
	return api.GetVersion200JSONResponse{Version: s.Version, Contract: s.contractVersion, Schema: migrate.Latest(), Go: runtime.Version()}, nil
}
