package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"

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

// ownerOf is the owner of a container that has these labels; it may be gone by now.
func (x *exchange) ownerOf(id string, labels map[string]string) string {
	if owner, known := x.srv.Index.OwnerOf(id); known {
		return owner
	}
	return policy.OwnerOf(labels)
}

// eventType is what the filter reads of an event.
type eventType struct {
	Type   string
	Action string
	Actor  struct {
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
		err := json.Unmarshal(raw, &e)
		if err != nil {
			return err
		}
		if !x.ownEvent(&e) {
			continue
		}
		if raw, err = x.showEvent(&e, raw); err != nil {
			return err
		}
		if _, err := x.w.Write(append(raw, '\n')); err != nil {
			return errClientGone
		}
		if err := flush(); err != nil {
			return errClientGone
		}
	}
}

// showEvent puts the owner's name for a network in an event about it.
func (x *exchange) showEvent(e *eventType, raw json.RawMessage) (json.RawMessage, error) {
	if e.Type != "network" {
		return raw, nil
	}
	names, err := x.srv.Names.Renamed(x.r.Context(), x.subject.User)
	shown, ok := names[e.Actor.Attributes["name"]]
	if err != nil || !ok {
		return raw, err
	}
	var event, actor map[string]json.RawMessage
	e.Actor.Attributes["name"] = shown
	attributes, err := json.Marshal(e.Actor.Attributes)
	if err = errors.Join(err, json.Unmarshal(raw, &event), json.Unmarshal(event["Actor"], &actor)); err != nil {
		return nil, err
	}
	actor["Attributes"] = attributes
	if event["Actor"], err = json.Marshal(actor); err != nil {
		return nil, err
	}
	return json.Marshal(event)
}

// ownEvent reports whether the caller may see an event.
func (x *exchange) ownEvent(e *eventType) bool {
	switch e.Type {
	case "container":
		return x.ownerOf(e.Actor.ID, e.Actor.Attributes) == x.subject.User
	case "network", "volume":
		if id := e.Actor.Attributes["container"]; id != "" {
			return x.own(x.r.Context(), id)
		}
		owner, known := x.srv.Catalog.Owner(x.r.Context(), e.Type, e.Actor.ID, e.Action == "destroy" || e.Action == "remove")
		return known && owner == x.subject.User
	case "image":
		return x.ownImageEvent(e)
	}
	return false
}

// answerDiskUsage leaves other users' containers and volumes, and the build cache,
// which is everybody's, out of the account.
func answerDiskUsage(x *exchange, _ *upstream, resp *http.Response) error {
	var usage map[string]json.RawMessage
	if _, err := x.readAnswer(resp, &usage); err != nil {
		return err
	}
	for _, key := range []string{"Containers", "Volumes"} {
		own, err := x.ownItems(usage[key])
		if err != nil {
			return err
		}
		if own != nil {
			usage[key] = own
		}
	}
	if !x.imagesShared() && usage["Images"] != nil {
		if err := x.ownDiskImages(usage); err != nil {
			return err
		}
	}
	for key, nothing := range map[string]string{"BuildCache": "[]", "BuilderSize": "0"} {
		if _, ok := usage[key]; ok {
			usage[key] = json.RawMessage(nothing)
		}
	}
	return x.replyJSON(resp, usage)
}

// ownItems keeps the subject's own of a list of things with labels; nil where
// there is no list.
func (x *exchange) ownItems(list json.RawMessage) (json.RawMessage, error) {
	var all []json.RawMessage
	if list == nil || json.Unmarshal(list, &all) != nil || all == nil {
		return nil, nil
	}
	own := []json.RawMessage{}
	for _, one := range all {
		var c struct {
			ID     string
			Labels map[string]string
		}
		if json.Unmarshal(one, &c) == nil && x.ownerOf(c.ID, c.Labels) == x.subject.User {
			own = append(own, one)
		}
	}
	return json.Marshal(own)
}

// answerInfo shows the caller's own count of containers, and keeps to itself what
// is the admin's: proxy credentials, swarm, labels of the host.
func answerInfo(x *exchange, _ *upstream, resp *http.Response) error {
	var info map[string]json.RawMessage
	if _, err := x.readAnswer(resp, &info); err != nil {
		return err
	}
	states, err := x.srv.Census.States(x.r.Context(), x.subject.User)
	if err != nil {
		return err
	}
	total := 0
	for _, n := range states {
		total += n
	}
	set := func(key string, v any) {
		if _, ok := info[key]; ok && err == nil {
			info[key], err = json.Marshal(v)
		}
	}
	set("Containers", total)
	set("ContainersRunning", states["running"])
	set("ContainersPaused", states["paused"])
	set("ContainersStopped", total-states["running"]-states["paused"])
	set("Labels", []string{})
	if !x.imagesShared() {
		n, err := x.countImages()
		if err != nil {
			return err
		}
		set("Images", n)
	}
	set("Swarm", map[string]any{
		"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "", "RemoteManagers": nil,
	})
	for _, key := range []string{"HttpProxy", "HttpsProxy"} {
		var text string
		if json.Unmarshal(info[key], &text) == nil {
			set(key, withoutUser(text))
		}
	}
	if err != nil {
		return err
	}
	return x.replyJSON(resp, info)
}

// withoutUser takes user and password out of a URL; what is not one is dropped.
func withoutUser(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}
