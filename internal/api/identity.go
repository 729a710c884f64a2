package api

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/apikey"
	"github.com/alkdev/hub/internal/store"
)

// GetMe implements the contract's operation.
func (s *Server) GetMe(ctx context.Context, _ api.GetMeRequestObject) (api.GetMeResponseObject, error) {
	row, err := s.db.GetMe(ctx)
	if err != nil {
		return nil, err
	}
	return api.GetMe200JSONResponse{
		Account: account(row.Account), Organization: organization(row.Organization), MembershipLevel: api.MembershipLevel(row.MembershipLevel),
		ApiKey: apiKey(db.GetAPIKeyRow{
			ID: row.ID, AccountID: row.AccountID, Name: row.Name, Scopes: row.Scopes, Resources: row.Resources, Tags: row.Tags, Enabled: row.Enabled,
			ExpiresAt: row.ExpiresAt, RevokedAt: row.RevokedAt, RotatedToID: row.RotatedToID, LastUsedAt: row.LastUsedAt, Metadata: row.Metadata,
			Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
		}),
	}, nil
}

// Accounts ------------------------------------------------------------------------------------------------------------

// CreateAccount implements the contract's operation.
func (s *Server) CreateAccount(ctx context.Context, r api.CreateAccountRequestObject) (api.CreateAccountResponseObject, error) {
	data, metadata, err := storables(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.CreateAccount(ctx, db.CreateAccountParams{
		Kind: string(r.Body.Kind), DisplayName: r.Body.DisplayName, Email: r.Body.Email, MembershipLevel: levelOr(r.Body.MembershipLevel), Data: data.JSON, Metadata: metadata.JSON,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateAccount201JSONResponse{
		Body:    account(db.Account(row)),
		Headers: api.CreateAccount201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/accounts/" + row.ID.String()},
	}, nil
}

// GetAccount implements the contract's operation.
func (s *Server) GetAccount(ctx context.Context, r api.GetAccountRequestObject) (api.GetAccountResponseObject, error) {
	row, err := s.db.GetAccount(ctx, r.AccountId)
	if err != nil {
		return nil, missing("account", err)
	}
	return api.GetAccount200JSONResponse{Body: account(row), Headers: api.GetAccount200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListAccounts implements the contract's operation.
func (s *Server) ListAccounts(ctx context.Context, r api.ListAccountsRequestObject) (api.ListAccountsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	id, _, err := after[uuid.UUID](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListAccounts(ctx, db.ListAccountsParams{
		AfterID: id, Kind: (*string)(r.Params.Kind), Status: (*string)(r.Params.Status), RowLimit: limit + 1,
	})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(a db.Account) uuid.UUID { return a.ID })
	return api.ListAccounts200JSONResponse{Items: each(rows, account), NextCursor: cursor}, nil
}

// SearchAccounts implements the contract's operation.
func (s *Server) SearchAccounts(ctx context.Context, r api.SearchAccountsRequestObject) (api.SearchAccountsResponseObject, error) {
	rows, err := s.db.SearchAccounts(ctx, db.SearchAccountsParams{Text: r.Params.Q, RowLimit: pageSize(r.Params.Limit)})
	if err != nil {
		return nil, err
	}
	return api.SearchAccounts200JSONResponse{Items: each(rows, account)}, nil
}

// UpdateAccount implements the contract's operation.
func (s *Server) UpdateAccount(ctx context.Context, r api.UpdateAccountRequestObject) (api.UpdateAccountResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	data, metadata, err := storablePatches(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.UpdateAccount(ctx, db.UpdateAccountParams{
		ID: r.AccountId, IfMatch: expected, DisplayName: r.Body.DisplayName, AccessLevel: (*string)(r.Body.AccessLevel),
		SetEmail: r.Body.Email.IsSpecified(), Email: valueOrNull(r.Body.Email), DataPatch: data, MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetAccount(ctx, r.AccountId); return missing("account", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateAccount200JSONResponse{Body: account(row), Headers: api.UpdateAccount200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeleteAccount implements the contract's operation.
func (s *Server) DeleteAccount(ctx context.Context, r api.DeleteAccountRequestObject) (api.DeleteAccountResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteAccount(ctx, db.DeleteAccountParams{ID: r.AccountId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetAccount(ctx, r.AccountId); return missing("account", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteAccount204Response{}, nil
}

// SuspendAccount implements the contract's operation.
func (s *Server) SuspendAccount(ctx context.Context, r api.SuspendAccountRequestObject) (api.SuspendAccountResponseObject, error) {
	row, err := s.db.SetAccountStatus(ctx, db.SetAccountStatusParams{ID: r.AccountId, Status: string(api.AccountStatusSuspended)})
	if err != nil {
		return nil, missing("account", err)
	}
	return api.SuspendAccount200JSONResponse{Body: account(row), Headers: api.SuspendAccount200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ActivateAccount implements the contract's operation.
func (s *Server) ActivateAccount(ctx context.Context, r api.ActivateAccountRequestObject) (api.ActivateAccountResponseObject, error) {
	row, err := s.db.SetAccountStatus(ctx, db.SetAccountStatusParams{ID: r.AccountId, Status: string(api.AccountStatusActive)})
	if err != nil {
		return nil, missing("account", err)
	}
	return api.ActivateAccount200JSONResponse{Body: account(row), Headers: api.ActivateAccount200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeactivateAccount implements the contract's operation.
func (s *Server) DeactivateAccount(ctx context.Context, r api.DeactivateAccountRequestObject) (api.DeactivateAccountResponseObject, error) {
	var row db.Account
	var owned []db.Organization
	err := s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) (err error) {
		if row, err = q.SetAccountStatus(ctx, db.SetAccountStatusParams{ID: r.AccountId, Status: string(api.AccountStatusDeactivated)}); err != nil {
			return missing("account", err)
		}
		owned, err = q.ListOwnedOrganizations(ctx, r.AccountId)
		return err
	})
	if err != nil {
		return nil, err
	}
	return api.DeactivateAccount200JSONResponse{
		Body:    api.DeactivatedAccount{Account: account(row), OwnedOrganizations: each(owned, organization)},
		Headers: api.DeactivateAccount200ResponseHeaders{ETag: etag(row.Revision)},
	}, nil
}

// Organisations -------------------------------------------------------------------------------------------------------

// CreateOrganization implements the contract's operation.
func (s *Server) CreateOrganization(ctx context.Context, r api.CreateOrganizationRequestObject) (api.CreateOrganizationResponseObject, error) {
	data, metadata, err := storables(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	key, hash := apikey.Issue()
	keyID := uuid.Must(uuid.NewV7())
	row, err := s.db.CreateOrganization(ctx, db.CreateOrganizationParams{
		Slug: r.Body.Slug, Name: r.Body.Name, OwnerID: r.Body.OwnerId, Data: data.JSON, Metadata: metadata.JSON, KeyID: keyID, KeyHash: hash,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateOrganization201JSONResponse{
		Body:    api.OrganizationCreated{Organization: organization(row), OwnerKeyId: keyID, OwnerKey: key},
		Headers: api.CreateOrganization201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/organizations/" + row.ID.String()},
	}, nil
}

// GetOrganization implements the contract's operation.
func (s *Server) GetOrganization(ctx context.Context, r api.GetOrganizationRequestObject) (api.GetOrganizationResponseObject, error) {
	row, err := s.db.GetOrganization(ctx, r.OrganizationId)
	if err != nil {
		return nil, missing("organization", err)
	}
	return api.GetOrganization200JSONResponse{Body: organization(row), Headers: api.GetOrganization200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListOrganizations implements the contract's operation.
func (s *Server) ListOrganizations(ctx context.Context, r api.ListOrganizationsRequestObject) (api.ListOrganizationsResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	slug, _, err := after[string](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListOrganizations(ctx, db.ListOrganizationsParams{AfterSlug: slug, RowLimit: limit + 1})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(o db.Organization) string { return o.Slug })
	return api.ListOrganizations200JSONResponse{Items: each(rows, organization), NextCursor: cursor}, nil
}

// UpdateOrganization implements the contract's operation.
func (s *Server) UpdateOrganization(ctx context.Context, r api.UpdateOrganizationRequestObject) (api.UpdateOrganizationResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	data, metadata, err := storablePatches(r.Body.Data, r.Body.Metadata)
	if err != nil {
		return nil, err
	}
	row, err := s.db.UpdateOrganization(ctx, db.UpdateOrganizationParams{
		ID: r.OrganizationId, IfMatch: expected, Slug: r.Body.Slug, Name: r.Body.Name, DataPatch: data, MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error {
			_, err := s.db.GetOrganization(ctx, r.OrganizationId)
			return missing("organization", err)
		})
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateOrganization200JSONResponse{Body: organization(row), Headers: api.UpdateOrganization200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DeleteOrganization implements the contract's operation.
func (s *Server) DeleteOrganization(ctx context.Context, r api.DeleteOrganizationRequestObject) (api.DeleteOrganizationResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.DeleteOrganization(ctx, db.DeleteOrganizationParams{ID: r.OrganizationId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error {
			_, err := s.db.GetOrganization(ctx, r.OrganizationId)
			return missing("organization", err)
		})
	}
	if err != nil {
		return nil, err
	}
	return api.DeleteOrganization204Response{}, nil
}

// TransferOrganizationOwnership implements the contract's operation.
func (s *Server) TransferOrganizationOwnership(ctx context.Context, r api.TransferOrganizationOwnershipRequestObject) (api.TransferOrganizationOwnershipResponseObject, error) {
	row, err := s.db.TransferOrganization(ctx, db.TransferOrganizationParams{ID: r.OrganizationId, AccountID: r.Body.AccountId})
	if err != nil {
		return nil, missing("organization", err)
	}
	return api.TransferOrganizationOwnership200JSONResponse{
		Body: organization(row), Headers: api.TransferOrganizationOwnership200ResponseHeaders{ETag: etag(row.Revision)},
	}, nil
}

// Members -------------------------------------------------------------------------------------------------------------

// AddMember implements the contract's operation.
func (s *Server) AddMember(ctx context.Context, r api.AddMemberRequestObject) (api.AddMemberResponseObject, error) {
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	var row db.GetMemberRow
	err = s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
		_, err := q.AddMember(ctx, db.AddMemberParams{AccountID: r.Body.AccountId, MembershipLevel: levelOr(r.Body.MembershipLevel), Metadata: metadata.JSON})
		if err == nil {
			row, err = q.GetMember(ctx, r.Body.AccountId) // the account can be seen only now
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return api.AddMember201JSONResponse{
		Body:    member(row),
		Headers: api.AddMember201ResponseHeaders{ETag: etag(row.OrganizationMember.Revision), Location: "/v1/members/" + r.Body.AccountId.String()},
	}, nil
}

// GetMember implements the contract's operation.
func (s *Server) GetMember(ctx context.Context, r api.GetMemberRequestObject) (api.GetMemberResponseObject, error) {
	row, err := s.db.GetMember(ctx, r.AccountId)
	if err != nil {
		return nil, missing("member", err)
	}
	return api.GetMember200JSONResponse{Body: member(row), Headers: api.GetMember200ResponseHeaders{ETag: etag(row.OrganizationMember.Revision)}}, nil
}

// ListMembers implements the contract's operation.
func (s *Server) ListMembers(ctx context.Context, r api.ListMembersRequestObject) (api.ListMembersResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	id, _, err := after[uuid.UUID](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListMembers(ctx, db.ListMembersParams{AfterID: id, MembershipLevel: (*string)(r.Params.MembershipLevel), RowLimit: limit + 1})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(m db.ListMembersRow) uuid.UUID { return m.OrganizationMember.AccountID })
	return api.ListMembers200JSONResponse{Items: each(rows, func(m db.ListMembersRow) api.Member { return member(db.GetMemberRow(m)) }), NextCursor: cursor}, nil
}

// UpdateMember implements the contract's operation.
func (s *Server) UpdateMember(ctx context.Context, r api.UpdateMemberRequestObject) (api.UpdateMemberResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.UpdateMember(ctx, db.UpdateMemberParams{
		AccountID: r.AccountId, IfMatch: expected, MembershipLevel: (*string)(r.Body.MembershipLevel), MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetMember(ctx, r.AccountId); return missing("member", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateMember200JSONResponse{
		Body: member(db.GetMemberRow{
			OrganizationMember: db.OrganizationMember{
				AccountID: row.AccountID, MembershipLevel: row.MembershipLevel, Metadata: row.Metadata, Revision: row.Revision, CreatedAt: row.CreatedAt, UpdatedAt: row.UpdatedAt,
			},
			Kind: row.Kind, Status: row.Status, DisplayName: row.DisplayName,
		}),
		Headers: api.UpdateMember200ResponseHeaders{ETag: etag(row.Revision)},
	}, nil
}

// RemoveMember implements the contract's operation.
func (s *Server) RemoveMember(ctx context.Context, r api.RemoveMemberRequestObject) (api.RemoveMemberResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	count, err := s.db.RemoveMember(ctx, db.RemoveMemberParams{AccountID: r.AccountId, IfMatch: expected})
	if err == nil && count == 0 {
		err = untouched(expected, func() error { _, err := s.db.GetMember(ctx, r.AccountId); return missing("member", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.RemoveMember204Response{}, nil
}

// API keys ------------------------------------------------------------------------------------------------------------

// CreateApiKey implements the contract's operation.
func (s *Server) CreateApiKey(ctx context.Context, r api.CreateApiKeyRequestObject) (api.CreateApiKeyResponseObject, error) {
	metadata, err := storable(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	key, hash := apikey.Issue()
	row, err := s.db.CreateAPIKey(ctx, db.CreateAPIKeyParams{
		AccountID: r.Body.AccountId, Name: r.Body.Name, KeyHash: hash, Scopes: r.Body.Scopes, Resources: notNil(r.Body.Resources), Tags: notNil(r.Body.Tags),
		ExpiresAt: r.Body.ExpiresAt, Metadata: metadata.JSON,
	})
	if err != nil {
		return nil, err
	}
	return api.CreateApiKey201JSONResponse{
		Body:    api.ApiKeyCreated{ApiKey: apiKey(db.GetAPIKeyRow(row)), Key: key},
		Headers: api.CreateApiKey201ResponseHeaders{ETag: etag(row.Revision), Location: "/v1/api-keys/" + row.ID.String()},
	}, nil
}

// GetApiKey implements the contract's operation.
func (s *Server) GetApiKey(ctx context.Context, r api.GetApiKeyRequestObject) (api.GetApiKeyResponseObject, error) {
	row, err := s.db.GetAPIKey(ctx, r.ApiKeyId)
	if err != nil {
		return nil, missing("api_key", err)
	}
	return api.GetApiKey200JSONResponse{Body: apiKey(row), Headers: api.GetApiKey200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// ListApiKeys implements the contract's operation.
func (s *Server) ListApiKeys(ctx context.Context, r api.ListApiKeysRequestObject) (api.ListApiKeysResponseObject, error) {
	limit, filters := pageSize(r.Params.Limit), r.Params
	filters.Limit, filters.Cursor = nil, nil
	id, _, err := after[uuid.UUID](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	rows, err := s.db.ListAPIKeys(ctx, db.ListAPIKeysParams{AfterID: id, AccountID: r.Params.AccountId, Tag: r.Params.Tag, RowLimit: limit + 1})
	if err != nil {
		return nil, err
	}
	rows, cursor := next(rows, limit, filters, func(k db.ListAPIKeysRow) uuid.UUID { return k.ID })
	return api.ListApiKeys200JSONResponse{Items: each(rows, func(k db.ListAPIKeysRow) api.ApiKey { return apiKey(db.GetAPIKeyRow(k)) }), NextCursor: cursor}, nil
}

// UpdateApiKey implements the contract's operation.
func (s *Server) UpdateApiKey(ctx context.Context, r api.UpdateApiKeyRequestObject) (api.UpdateApiKeyResponseObject, error) {
	expected, err := ifMatch(r.Params.IfMatch)
	if err != nil {
		return nil, err
	}
	metadata, err := storablePatch(r.Body.Metadata)
	if err != nil {
		return nil, at("/metadata", err)
	}
	row, err := s.db.UpdateAPIKey(ctx, db.UpdateAPIKeyParams{
		ID: r.ApiKeyId, IfMatch: expected, Name: r.Body.Name, Scopes: r.Body.Scopes, Resources: r.Body.Resources, Tags: r.Body.Tags,
		SetExpiresAt: r.Body.ExpiresAt.IsSpecified(), ExpiresAt: valueOrNull(r.Body.ExpiresAt), MetadataPatch: metadata,
	})
	if errors.Is(err, pgx.ErrNoRows) {
		err = untouched(expected, func() error { _, err := s.db.GetAPIKey(ctx, r.ApiKeyId); return missing("api_key", err) })
	}
	if err != nil {
		return nil, err
	}
	return api.UpdateApiKey200JSONResponse{Body: apiKey(db.GetAPIKeyRow(row)), Headers: api.UpdateApiKey200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// RevokeApiKey implements the contract's operation.
func (s *Server) RevokeApiKey(ctx context.Context, r api.RevokeApiKeyRequestObject) (api.RevokeApiKeyResponseObject, error) {
	row, err := s.db.RevokeAPIKey(ctx, r.ApiKeyId)
	if err != nil {
		return nil, missing("api_key", err)
	}
	return api.RevokeApiKey200JSONResponse{Body: apiKey(db.GetAPIKeyRow(row)), Headers: api.RevokeApiKey200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// EnableApiKey implements the contract's operation.
func (s *Server) EnableApiKey(ctx context.Context, r api.EnableApiKeyRequestObject) (api.EnableApiKeyResponseObject, error) {
	row, err := s.db.SetAPIKeyEnabled(ctx, db.SetAPIKeyEnabledParams{ID: r.ApiKeyId, Enabled: true})
	if err != nil {
		return nil, missing("api_key", err)
	}
	return api.EnableApiKey200JSONResponse{Body: apiKey(db.GetAPIKeyRow(row)), Headers: api.EnableApiKey200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

// DisableApiKey implements the contract's operation.
func (s *Server) DisableApiKey(ctx context.Context, r api.DisableApiKeyRequestObject) (api.DisableApiKeyResponseObject, error) {
	row, err := s.db.SetAPIKeyEnabled(ctx, db.SetAPIKeyEnabledParams{ID: r.ApiKeyId, Enabled: false})
	if err != nil {
		return nil, missing("api_key", err)
	}
	return api.DisableApiKey200JSONResponse{Body: apiKey(db.GetAPIKeyRow(row)), Headers: api.DisableApiKey200ResponseHeaders{ETag: etag(row.Revision)}}, nil
}

const defaultGrace = 24 * time.Hour // the contract's

// RotateApiKey implements the contract's operation.
func (s *Server) RotateApiKey(ctx context.Context, r api.RotateApiKeyRequestObject) (api.RotateApiKeyResponseObject, error) {
	wanted := deref(r.Body)
	grace := defaultGrace
	if wanted.GraceSeconds != nil {
		grace = time.Duration(*wanted.GraceSeconds) * time.Second
	}
	key, hash := apikey.Issue()
	rows, err := s.db.RotateAPIKey(ctx, db.RotateAPIKeyParams{
		ID: r.ApiKeyId, MadeID: uuid.Must(uuid.NewV7()), KeyHash: hash, ExpiresAt: wanted.ExpiresAt, GraceSeconds: grace.Seconds(),
	})
	if err == nil && len(rows) == 0 {
		err = notFound("api_key")
	}
	if err != nil {
		return nil, err
	}
	made, replaced := rows[0], rows[1]
	return api.RotateApiKey201JSONResponse{
		Body:    api.ApiKeyRotated{ApiKey: apiKey(db.GetAPIKeyRow(made)), Key: key, Replaced: apiKey(db.GetAPIKeyRow(replaced))},
		Headers: api.RotateApiKey201ResponseHeaders{ETag: etag(made.Revision), Location: "/v1/api-keys/" + made.ID.String()},
	}, nil
}

// Rows as the contract has them ---------------------------------------------------------------------------------------

func account(a db.Account) api.Account {
	return api.Account{
		Id: a.ID, Kind: api.AccountKind(a.Kind), AccessLevel: api.AccessLevel(a.AccessLevel), Status: api.AccountStatus(a.Status), HomeOrganizationId: a.HomeOrgID,
		DisplayName: a.DisplayName, Email: a.Email, Data: given(a.Data), Metadata: given(a.Metadata), Revision: a.Revision, CreatedAt: a.CreatedAt, UpdatedAt: a.UpdatedAt,
	}
}

func organization(o db.Organization) api.Organization {
	return api.Organization{
		Id: o.ID, Slug: o.Slug, Name: o.Name, OwnerId: o.OwnerID, DeletedAt: o.DeletedAt,
		Data: given(o.Data), Metadata: given(o.Metadata), Revision: o.Revision, CreatedAt: o.CreatedAt, UpdatedAt: o.UpdatedAt,
	}
}

func member(m db.GetMemberRow) api.Member {
	o := m.OrganizationMember
	return api.Member{
		AccountId: o.AccountID, MembershipLevel: api.MembershipLevel(o.MembershipLevel), Kind: api.AccountKind(m.Kind), Status: api.AccountStatus(m.Status),
		DisplayName: m.DisplayName, Metadata: given(o.Metadata), Revision: o.Revision, CreatedAt: o.CreatedAt, UpdatedAt: o.UpdatedAt,
	}
}

func apiKey(k db.GetAPIKeyRow) api.ApiKey {
	return api.ApiKey{
		Id: k.ID, AccountId: k.AccountID, Name: k.Name, Scopes: k.Scopes, Resources: k.Resources, Tags: k.Tags, Enabled: k.Enabled,
		ExpiresAt: k.ExpiresAt, RevokedAt: k.RevokedAt, RotatedToId: k.RotatedToID, LastUsedAt: k.LastUsedAt,
		Metadata: given(k.Metadata), Revision: k.Revision, CreatedAt: k.CreatedAt, UpdatedAt: k.UpdatedAt,
	}
}

// levelOr is the level, or the contract's default.
func levelOr(level *api.MembershipLevel) string {
	if level == nil {
		return string(api.MembershipLevelMember)
	}
	return string(*level)
}
