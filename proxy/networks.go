package proxy

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// network resolves ref, checks that the subject may use it, and returns it for
// the caller to write its ID in place of the reference. The built-in networks
// are everybody's.
func (x *exchange) network(ref string, use policy.Use) (policy.Object, policy.Verdict, error) {
	obj, err := x.srv.Resources.Network(x.r.Context(), x.subject.User, ref)
	if err != nil {
		return obj, policy.Verdict{}, err
	}
	x.touch(obj.ID)
	if obj.Owner == "" && policy.BuiltInNetwork(obj.Ref) {
		return obj, policy.Verdict{Outcome: policy.Allow, Rule: "built-in-network"}, nil
	}
	return obj, policy.AccessObject(x.subject, obj, use, x.switches().UnownedResources), nil
}

// pathNetwork checks the network in the path and writes its full ID there.
func (x *exchange) pathNetwork(use policy.Use) (policy.Verdict, error) {
	obj, v, err := x.network(x.vars["ref"], use)
	if err == nil && v.Allowed() {
		x.path = replaceReference(x.path, "/networks/", x.vars["ref"], obj.ID)
	}
	return v, err
}

// readNetwork shows one network. Names of networks are everybody's own, so that one
// that only another user has is, to the caller, not there: compose looks for it and
// makes it then.
func readNetwork(x *exchange) (policy.Verdict, error) {
	ref := x.vars["ref"]
	obj, v, err := x.network(ref, policy.Read)
	switch {
	case err != nil:
		return v, err
	case !v.Allowed() && obj.Owner != "" && !strings.HasPrefix(obj.ID, ref):
		return v, &statusError{http.StatusNotFound, "network " + ref + " not found"}
	case v.Allowed():
		x.path = replaceReference(x.path, "/networks/", ref, obj.ID)
	}
	return v, nil
}

func changeNetwork(x *exchange) (policy.Verdict, error) { return x.pathNetwork(policy.Change) }

// listNetworks lets the list through; the answer is filtered, since a label
// filter would drop the built-in ones.
func listNetworks(*exchange) (policy.Verdict, error) {
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-only"}, nil
}

// createNetwork lets users have networks of the same name: the Engine gets a name
// that is free, and the owner goes on seeing their own.
func createNetwork(x *exchange) (policy.Verdict, error) {
	var req network.CreateRequest
	if present, err := x.decode(&req); err != nil || !present {
		return policy.Verdict{}, orEmpty(err)
	}
	if v := policy.NewName(req.Name); !v.Allowed() {
		return v, nil
	}
	x.srv.naming.Lock()
	x.release = x.srv.naming.Unlock
	all, err := x.srv.Catalog.Networks(x.r.Context())
	if err != nil {
		return policy.Verdict{}, err
	}
	count := 0
	taken := make(map[string]bool, len(all))
	for _, n := range all {
		taken[n.Name] = true
		if policy.OwnerOf(n.Labels) != x.subject.User {
			continue
		}
		count++
		if policy.NetworkName(n.Name, n.Labels) == req.Name {
			return policy.Verdict{}, &statusError{http.StatusConflict, "network with name " + req.Name + " already exists"}
		}
	}
	v := policy.NewNetwork(x.profile(), &req, x.srv.Networks, count)
	if !v.Allowed() {
		return v, nil
	}
	req.Labels = policy.OwnLabels(req.Labels, x.subject)
	if name := policy.FreeNetworkName(req.Name, x.subject.Slice, taken); name != req.Name {
		req.Labels[policy.LabelNetworkName] = req.Name
		shown := req.Name
		req.Name = name
		x.finish = func(ok bool) {
			if ok {
				x.srv.Names.AddNetwork(x.subject.User, name, shown)
			}
		}
	}
	// Engines before API 1.44 look for the name only if they are told to.
	check := true
	//lint:ignore SA1019 Debian 12's Engine is one of them
	req.CheckDuplicate = &check
	return v, x.encode(&req)
}

// connectNetwork and disconnectNetwork check the network in the path and the
// container in the body.
func connectNetwork(x *exchange) (policy.Verdict, error) {
	var req network.ConnectOptions
	if present, err := x.decode(&req); err != nil || !present {
		return policy.Verdict{}, orEmpty(err)
	}
	policy.ClearEndpoint(req.EndpointConfig)
	v, err := x.endpoint(&req.Container)
	if err != nil || !v.Allowed() {
		return v, err
	}
	if host := policy.ConnectVerdict(x.profile(), req.EndpointConfig); !host.Allowed() {
		return host, nil
	}
	return v, x.encode(&req)
}

func disconnectNetwork(x *exchange) (policy.Verdict, error) {
	var req network.DisconnectOptions
	if present, err := x.decode(&req); err != nil || !present {
		return policy.Verdict{}, orEmpty(err)
	}
	v, err := x.endpoint(&req.Container)
	if err != nil || !v.Allowed() {
		return v, err
	}
	return v, x.encode(&req)
}

// endpoint checks both ends of a connection and writes the container's ID in
// place of its reference.
func (x *exchange) endpoint(ref *string) (policy.Verdict, error) {
	obj, v, err := x.container(*ref, policy.Change)
	if err != nil || !v.Allowed() {
		return v, err
	}
	*ref = obj.ID
	// Joining a network does not change it.
	joined, err := x.pathNetwork(policy.Read)
	if err == nil && joined.Outcome == policy.Allow {
		// The container may have been let through by a switch.
		return v, nil
	}
	return joined, err
}

// maxNetworks is how many networks one create request may name.
const maxNetworks = 32

// createNetworks checks every network that a container is to join, and writes
// their IDs in place of the references.
func (x *exchange) createNetworks(req *container.CreateRequest) (policy.Verdict, error) {
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "create-container"}
	ids := make(map[string]string)
	refs := policy.NetworkReferences(req)
	if len(refs) > maxNetworks {
		return policy.Verdict{}, badRequest("the request names %d networks; %d is the most", len(refs), maxNetworks)
	}
	for _, ref := range refs {
		id, known := ids[ref.Ref]
		if !known {
			obj, v, err := x.network(ref.Ref, policy.Read)
			if errors.Is(err, engine.ErrNotFound) {
				// A 404 would make docker run pull the image.
				return v, badRequest("network %s not found", ref.Ref)
			}
			if err != nil {
				return v, err
			}
			if !v.Allowed() {
				v.Reason += " (" + ref.Field + " " + ref.Ref + ")"
				return v, nil
			}
			if v.Outcome == policy.FailOpen {
				verdict = v
			}
			if v := policy.HostByID(x.profile(), obj); !v.Allowed() {
				return v, nil
			}
			id = obj.ID
			ids[ref.Ref] = id
		}
		ref.Set(id)
	}
	return verdict, nil
}

// answerNetwork leaves other users' containers out of a network's description.
func answerNetwork(x *exchange, _ *upstream, resp *http.Response) error {
	var one map[string]json.RawMessage
	if _, err := x.readAnswer(resp, &one); err != nil {
		return err
	}
	if err := errors.Join(x.ownEndpoints(one), showName(one)); err != nil {
		return err
	}
	return x.replyJSON(resp, one)
}

// showName puts the owner's name for a network in the place of the Engine's.
func showName(network map[string]json.RawMessage) error {
	var n engine.Network
	if err := errors.Join(json.Unmarshal(network["Name"], &n.Name), json.Unmarshal(network["Labels"], &n.Labels)); err != nil {
		return err
	}
	text, err := json.Marshal(policy.NetworkName(n.Name, n.Labels))
	network["Name"] = text
	return err
}

// answerNetworks leaves other users' networks out of a list, and their
// containers out of what is left, which has containers in old versions of the
// API.
func answerNetworks(x *exchange, _ *upstream, resp *http.Response) error {
	var all []map[string]json.RawMessage
	if _, err := x.readAnswer(resp, &all); err != nil {
		return err
	}
	own := []map[string]json.RawMessage{}
	for _, one := range all {
		var n engine.Network
		if errors.Join(json.Unmarshal(one["Name"], &n.Name), json.Unmarshal(one["Labels"], &n.Labels)) != nil {
			continue
		}
		if owner := policy.OwnerOf(n.Labels); owner != x.subject.User && !(owner == "" && policy.BuiltInNetwork(n.Name)) {
			continue
		}
		if err := errors.Join(x.ownEndpoints(one), showName(one)); err != nil {
			return err
		}
		own = append(own, one)
	}
	return x.replyJSON(resp, own)
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

// answerContainer shows a container's networks by the names that their owner
// gave them; with none that the Engine calls otherwise, the answer is passed on.
func answerContainer(x *exchange, up *upstream, resp *http.Response) error {
	return showNetworks(x, up, resp, func(one *map[string]json.RawMessage, names map[string]string) error {
		return showEndpoints(*one, names)
	})
}

// answerContainers does the same for a list, and filters it by owner where the
// Engine could not.
func answerContainers(x *exchange, up *upstream, resp *http.Response) error {
	return showNetworks(x, up, resp, func(list *[]map[string]json.RawMessage, names map[string]string) error {
		own := []map[string]json.RawMessage{}
		for _, one := range *list {
			if x.ownOnly && !x.ownListed(one) {
				continue
			}
			if err := showEndpoints(one, names); err != nil {
				return err
			}
			if own = append(own, one); len(own) == x.limit {
				break
			}
		}
		*list = own
		return nil
	})
}

// ownListed reports whether a container of a list is the subject's, by what the
// index knows or else by its labels.
func (x *exchange) ownListed(one map[string]json.RawMessage) bool {
	var c engine.Container
	if errors.Join(json.Unmarshal(one["Id"], &c.ID), json.Unmarshal(one["Labels"], &c.Labels)) != nil {
		return false
	}
	return x.ownerOf(c.ID, c.Labels) == x.subject.User
}

// showNetworks reads the answer as a T and lets show change it, where there is
// anything to change.
func showNetworks[T any](x *exchange, up *upstream, resp *http.Response, show func(v *T, names map[string]string) error) error {
	names, err := x.srv.Names.Renamed(x.r.Context(), x.subject.User)
	if err != nil {
		return err
	}
	if len(names) == 0 && !x.ownOnly {
		if !x.srv.Staged.Any() {
			return x.pass(up, resp)
		}
		// Paths alone are to be shown otherwise, and the text is enough for that.
		text, err := x.readText(resp)
		if err != nil {
			return err
		}
		return x.reply(resp, text)
	}
	var v T
	if _, err := x.readAnswer(resp, &v); err != nil {
		return err
	}
	if err := show(&v, names); err != nil {
		return err
	}
	return x.replyJSON(resp, &v)
}

// showEndpoints renames the keys of NetworkSettings.Networks.
func showEndpoints(container map[string]json.RawMessage, names map[string]string) error {
	var settings, endpoints map[string]json.RawMessage
	if json.Unmarshal(container["NetworkSettings"], &settings) != nil || json.Unmarshal(settings["Networks"], &endpoints) != nil {
		return nil
	}
	shown := make(map[string]json.RawMessage, len(endpoints))
	for name, endpoint := range endpoints {
		if own, ok := names[name]; ok {
			name = own
		}
		shown[name] = endpoint
	}
	var err error
	if settings["Networks"], err = json.Marshal(shown); err != nil {
		return err
	}
	container["NetworkSettings"], err = json.Marshal(settings)
	return err
}
