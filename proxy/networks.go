package proxy

import (
	"encoding/json"
	"errors"
	"net/http"

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
	x.rec.Objects = append(x.rec.Objects, obj.ID)
	if obj.Owner == "" && policy.BuiltInNetwork(obj.Ref) {
		return obj, policy.Verdict{Outcome: policy.Allow, Rule: "built-in-network"}, nil
	}
	return obj, policy.AccessObject(x.subject, obj, use, x.srv.Switches.UnownedResources), nil
}

// pathNetwork checks the network in the path and writes its full ID there.
func (x *exchange) pathNetwork(use policy.Use) (policy.Verdict, error) {
	obj, v, err := x.network(x.vars["ref"], use)
	if err == nil && v.Allowed() {
		x.path = replaceReference(x.path, "/networks/", x.vars["ref"], obj.ID)
	}
	return v, err
}

func readNetwork(x *exchange) (policy.Verdict, error)   { return x.pathNetwork(policy.Read) }
func changeNetwork(x *exchange) (policy.Verdict, error) { return x.pathNetwork(policy.Change) }

// listNetworks lets the list through; the answer is filtered, since a label
// filter would drop the built-in ones.
func listNetworks(*exchange) (policy.Verdict, error) {
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-only"}, nil
}

// createNetwork lets users have networks of the same name: each refers to their
// own, and what is forwarded is always an ID.
func createNetwork(x *exchange) (policy.Verdict, error) {
	var req network.CreateRequest
	if present, err := x.decode(&req); err != nil || !present {
		return policy.Verdict{}, orEmpty(err)
	}
	if v := policy.NewName(req.Name); !v.Allowed() {
		return v, nil
	}
	all, err := x.srv.Catalog.Networks(x.r.Context())
	if err != nil {
		return policy.Verdict{}, err
	}
	count := 0
	for _, n := range all {
		if policy.OwnerOf(n.Labels) != x.subject.User {
			continue
		}
		count++
		if n.Name == req.Name {
			return policy.Verdict{}, &statusError{http.StatusConflict, "network with name " + req.Name + " already exists"}
		}
	}
	v := policy.NewNetwork(&req, x.srv.Networks, count)
	if !v.Allowed() {
		return v, nil
	}
	req.Labels = policy.OwnLabels(req.Labels, x.subject)
	// The proxy has looked among the user's own; Engines before API 1.44 look
	// among everybody's only if they are told to.
	checked := false
	req.CheckDuplicate = &checked
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
	return x.pathNetwork(policy.Read)
}

// createNetworks checks every network that a container is to join, and writes
// their IDs in place of the references.
func (x *exchange) createNetworks(req *container.CreateRequest) (policy.Verdict, error) {
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "create-container"}
	ids := make(map[string]string)
	for _, ref := range policy.NetworkReferences(req) {
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
	if err := x.ownEndpoints(one); err != nil {
		return err
	}
	return x.replyJSON(resp, one)
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
		if err := x.ownEndpoints(one); err != nil {
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
