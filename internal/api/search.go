package api

import (
	"context"
	"strings"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
)

// SearchSessions implements the contract's operation. Snippets are made for the page's matches alone.
func (s *Server) SearchSessions(ctx context.Context, r api.SearchSessionsRequestObject) (api.SearchSessionsResponseObject, error) {
	type key struct {
		Rank float32
		ID   uuid.UUID
	}
	limit, filters := int32(20), r.Params
	if r.Params.Limit != nil {
		limit = *r.Params.Limit
	}
	filters.Limit, filters.Cursor = nil, nil
	last, found, err := after[key](r.Params.Cursor, filters)
	if err != nil {
		return nil, err
	}
	arg := db.SearchSessionsParams{
		Query: r.Params.Q, ProjectID: r.Params.ProjectId, RoleName: r.Params.RoleName, AccountID: r.Params.AccountId, Archived: r.Params.Archived,
		Since: r.Params.Since, Until: r.Params.Until, RowLimit: limit + 1,
	}
	if found {
		arg.BelowRank, arg.BelowID = &last.Rank, &last.ID
	}
	rows, err := s.db.SearchSessions(ctx, arg)
	if err != nil {
		return nil, err
	}
	hits := []api.SessionHit{}
	for _, row := range rows {
		if len(hits) == 0 || hits[len(hits)-1].Session.Id != row.Session.ID {
			hits = append(hits, api.SessionHit{Session: session(row.Session), Rank: row.Rank, Matches: row.Matches, Best: []api.SearchMatch{}})
		}
		hit := &hits[len(hits)-1]
		hit.Best = append(hit.Best, api.SearchMatch{
			MessageId: row.MessageID, PartId: row.PartID, Type: row.Type, CreatedAt: row.CreatedAt, Snippet: snippet(row.Snippet),
		})
	}
	hits, cursor := next(hits, limit, filters, func(hit api.SessionHit) key { return key{hit.Rank, hit.Session.Id} })
	return api.SearchSessions200JSONResponse{Items: hits, NextCursor: cursor}, nil
}

// snippetPiece is how many characters a piece of a snippet has at most: words may be long.
const snippetPiece = 300

// snippet parts a text at the marks that search_snippet() puts around what was found. Neighbours of a kind are one piece.
func snippet(marked string) []api.SnippetPiece {
	pieces := []api.SnippetPiece{}
	add := func(text string, match bool) {
		switch n := len(pieces); {
		case text == "":
		case n > 0 && pieces[n-1].Match == match:
			pieces[n-1].Text += text
		default:
			pieces = append(pieces, api.SnippetPiece{Text: text, Match: match})
		}
	}
	for marked != "" {
		var plain, match string
		plain, marked, _ = strings.Cut(marked, "\x02")
		match, marked, _ = strings.Cut(marked, "\x03")
		add(plain, false)
		add(match, true)
	}
	for i := range pieces {
		if text := []rune(pieces[i].Text); len(text) > snippetPiece {
			pieces[i].Text = string(text[:snippetPiece/2]) + " … " + string(text[len(text)-snippetPiece/2:])
		}
	}
	return pieces
}
