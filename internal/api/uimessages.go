package api

import (
	"context"
	"encoding/json"
	"time"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/internal/uimessages"
)

// GetUIMessages implements the contract's operation: ListMessages, shown in another form.
func (s *Server) GetUIMessages(ctx context.Context, r api.GetUIMessagesRequestObject) (api.GetUIMessagesResponseObject, error) {
	list, err := s.ListMessages(ctx, api.ListMessagesRequestObject{
		SessionId: r.SessionId, Params: api.ListMessagesParams{Limit: r.Params.Limit, Cursor: r.Params.Cursor},
	})
	if err != nil {
		return nil, err
	}
	page := list.(api.ListMessages200JSONResponse)
	return api.GetUIMessages200JSONResponse{Items: each(page.Items, uiMessage), NextCursor: page.NextCursor}, nil
}

func uiMessage(m api.Message) api.UIMessage {
	parts := []json.RawMessage{}
	for _, p := range m.Parts {
		parts = append(parts, uimessages.Parts(p.Id.String(), p.Type, p.Data)...)
	}
	if len(parts) == 0 && m.Role != api.MessageRoleAssistant { // the AI SDK wants one
		parts = append(parts, json.RawMessage(`{"type":"text","text":""}`))
	}
	return api.UIMessage{
		Id: m.Id.String(), Role: m.Role, Metadata: uimessages.Metadata(m.Data, m.CreatedAt.Format(time.RFC3339Nano)), Parts: parts,
	}
}
