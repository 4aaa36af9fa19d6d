package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/versions"

	"github.com/ds01/ds01-proxy/policy"
)

// answerVersion says that the Engine speaks no newer API than the proxy knows.
func answerVersion(x *exchange, _ *upstream, resp *http.Response) error {
	var v types.Version
	text, err := x.readAnswer(resp, &v)
	if err != nil {
		return err
	}
	if !versions.GreaterThan(v.APIVersion, x.highest) {
		return x.reply(resp, text)
	}
	v.APIVersion = x.highest
	for _, c := range v.Components {
		if _, ok := c.Details["ApiVersion"]; ok && c.Name == "Engine" {
			c.Details["ApiVersion"] = x.highest
		}
	}
	return x.replyJSON(resp, &v)
}

// own reports whether a container, by its ID, is the subject's; what cannot be
// found out is not.
func (x *exchange) own(ctx context.Context, id string) bool {
	obj, err := x.srv.Owners.Container(ctx, x.subject.User, id)
	return err == nil && obj.Owner == x.subject.User
}

// eventType is what the filter reads of an event.
type eventType struct {
	Type  string
	Actor struct {
		ID         string
		Attributes map[string]string
	}
}

// answerEvents passes on the events that are the caller's own: those of their
// containers, of networks and volumes while these are used by their containers,
// and of images.
func answerEvents(x *exchange, up *upstream, resp *http.Response) error {
	defer resp.Body.Close()
	x.begin(resp, -1)
	flush := http.NewResponseController(x.w).Flush
	if err := flush(); err != nil {
		return errClientGone
	}
	dec := json.NewDecoder(resp.Body)
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			switch {
			case x.conn.isGone():
				return errClientGone
			case errors.Is(err, io.EOF):
				return nil
			}
			return &unreachableError{x.srv.Engine, err}
		}
		var e eventType
		if err := json.Unmarshal(raw, &e); err != nil {
			return err
		}
		if !x.ownEvent(&e) {
			continue
		}
		if _, err := x.w.Write(append(raw, '\n')); err != nil {
			return errClientGone
		}
		if err := flush(); err != nil {
			return errClientGone
		}
	}
}

// ownEvent reports whether the caller may see an event.
func (x *exchange) ownEvent(e *eventType) bool {
	switch e.Type {
	case "container":
		// The event carries the container's labels; it may be gone by now.
		return policy.OwnerOf(e.Actor.Attributes) == x.subject.User
	case "network", "volume":
		id := e.Actor.Attributes["container"]
		return id != "" && x.own(x.r.Context(), id)
	case "image":
		return true
	}
	return false
}

// answerDiskUsage leaves other users' containers out of the account.
func answerDiskUsage(x *exchange, _ *upstream, resp *http.Response) error {
	var usage map[string]json.RawMessage
	text, err := x.readAnswer(resp, &usage)
	if err != nil {
		return err
	}
	var all []json.RawMessage
	if list, ok := usage["Containers"]; !ok || json.Unmarshal(list, &all) != nil || all == nil {
		return x.reply(resp, text)
	}
	own := []json.RawMessage{}
	for _, one := range all {
		var c struct{ Labels map[string]string }
		if json.Unmarshal(one, &c) == nil && policy.OwnerOf(c.Labels) == x.subject.User {
			own = append(own, one)
		}
	}
	if usage["Containers"], err = json.Marshal(own); err != nil {
		return err
	}
	return x.replyJSON(resp, usage)
}

// answerNetwork leaves other users' containers out of a network's description.
func answerNetwork(x *exchange, _ *upstream, resp *http.Response) error {
	var one map[string]json.RawMessage
	if _, err := x.readAnswer(resp, &one); err != nil {
		return err
	}
	if err := x.ownEndpoints(one); err != nil {
		return err
	}
	return x.replyJSON(resp, one)
}

// answerNetworks does the same for a list, whose entries have containers in old
// versions of the API.
func answerNetworks(x *exchange, _ *upstream, resp *http.Response) error {
	var all []map[string]json.RawMessage
	if _, err := x.readAnswer(resp, &all); err != nil {
		return err
	}
	for _, one := range all {
		if err := x.ownEndpoints(one); err != nil {
			return err
		}
	}
	return x.replyJSON(resp, all)
}

func (x *exchange) ownEndpoints(network map[string]json.RawMessage) error {
	raw, ok := network["Containers"]
	if !ok {
		return nil
	}
	var endpoints map[string]json.RawMessage
	if err := json.Unmarshal(raw, &endpoints); err != nil {
		return err
	}
	for id := range endpoints {
		if !x.own(x.r.Context(), id) {
			delete(endpoints, id)
		}
	}
	text, err := json.Marshal(endpoints)
	network["Containers"] = text
	return err
}
