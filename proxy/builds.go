package proxy

import (
	"encoding/json"
	"strings"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/units"
)

// commitContainer checks the container that an image is made of, and keeps
// labels that speak of ownership out of the image.
func commitContainer(x *exchange) (policy.Verdict, error) {
	var config *container.Config
	if present, err := x.decode(&config); err != nil {
		return policy.Verdict{}, err
	} else if present {
		if config != nil {
			config.Labels = policy.WithoutReserved(config.Labels)
		}
		if err := x.encode(config); err != nil {
			return policy.Verdict{}, err
		}
	}
	if v := policy.CommitChanges(x.query["changes"]); !v.Allowed() {
		return v, nil
	}
	obj, v, err := x.container(x.query.Get("container"), policy.Change)
	if err == nil && v.Allowed() {
		x.query.Set("container", obj.ID)
	}
	return v, err
}

// build puts the steps of a classic build where the user's containers are, and
// marks what comes of it. BuildKit ignores all of that.
func build(x *exchange) (policy.Verdict, error) {
	x.ownBuildID("buildid", "upload-request:")
	if x.query.Get("version") == "2" {
		return buildKit(x)
	}
	if v := policy.BuildContext(x.query.Get("remote"), x.srv.Switches.RemoteBuilds); !v.Allowed() {
		return v, nil
	}
	verdict, err := x.buildNetwork()
	if err != nil || !verdict.Allowed() {
		return verdict, err
	}
	var labels map[string]string
	if text := x.query.Get("labels"); text != "" {
		if err := json.Unmarshal([]byte(text), &labels); err != nil {
			return policy.Verdict{}, badRequest("the labels parameter is not a JSON object of strings: %v", err)
		}
	}
	text, err := json.Marshal(policy.OwnLabels(labels, x.subject))
	if err != nil {
		return policy.Verdict{}, badRequest("the labels parameter cannot be rebuilt: %v", err)
	}
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil {
		return policy.Verdict{}, err
	}
	x.setQuery("labels", string(text))
	x.setQuery("cgroupparent", units.CgroupParent(st.CgroupDriver, x.subject.Group, x.subject.Slice))
	x.one("version")
	x.one("remote")
	if verdict.Outcome == policy.Allow {
		verdict.Rule = "classic-build"
	}
	return verdict, nil
}

// cancelBuild ends a build of the caller's own.
func cancelBuild(x *exchange) (policy.Verdict, error) {
	x.ownBuildID("id", "")
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-build"}, nil
}

// ownBuildID puts the user before the build's ID that a parameter holds, after
// prefix. Clients choose these IDs, and whoever says one that is in use cancels
// that build or gives it its context.
func (x *exchange) ownBuildID(key, prefix string) {
	id := x.query.Get(key)
	if id == "" {
		return
	}
	rest, has := strings.CutPrefix(id, prefix)
	if !has {
		prefix = ""
	}
	x.setQuery(key, prefix+x.subject.User+"/"+rest)
}

// buildNetwork checks the network that the steps of a build are to join.
func (x *exchange) buildNetwork() (policy.Verdict, error) {
	mode := x.query.Get("networkmode")
	x.one("networkmode")
	if ref, ok := strings.CutPrefix(mode, "container:"); ok {
		obj, v, err := x.container(ref, policy.Change)
		if err == nil && v.Allowed() {
			x.setQuery("networkmode", "container:"+obj.ID)
		}
		return v, err
	}
	if v, decided := policy.BuildNetwork(mode); decided {
		return v, nil
	}
	obj, v, err := x.network(mode, policy.Read)
	if err == nil && v.Allowed() {
		x.setQuery("networkmode", obj.ID)
	}
	return v, err
}

// buildKit lets a build session through, or not: what happens inside it the proxy
// does not see.
func buildKit(x *exchange) (policy.Verdict, error) {
	x.one("version")
	return policy.BuildKit(x.srv.Switches.BuildKit), nil
}

// setQuery sets a parameter to one value.
func (x *exchange) setQuery(key, value string) {
	if x.query == nil {
		x.query = make(map[string][]string)
	}
	x.query[key] = []string{value}
}
