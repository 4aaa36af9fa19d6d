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
	if err != nil || !v.Allowed() {
		return v, err
	}
	x.setQuery("container", obj.ID)
	if v, err = x.with(v)(x.sealed("a commit")); err != nil || !v.Allowed() {
		return v, err
	}
	tags, err := x.commitTag()
	if err != nil || !tags.Allowed() || v.Outcome != policy.FailOpen {
		return tags, err
	}
	return v, nil
}

// build puts the steps of a classic build where the user's containers are, and
// marks what comes of it. BuildKit ignores all of that.
func build(x *exchange) (policy.Verdict, error) {
	x.one("version")
	x.one("remote")
	x.ownBuildID("buildid", "upload-request:")
	if v := policy.BuildContext(x.query.Get("remote"), x.switches().RemoteBuilds); !v.Allowed() {
		return v, nil
	}
	kit := x.query.Get("version") == "2"
	var exported []string
	if kit {
		if v, err := buildKit(x); err != nil || !v.Allowed() {
			return v, err
		}
		var err error
		if exported, err = x.exportedNames(); err != nil {
			return policy.Verdict{}, err
		}
	} else if v := policy.BuildPull(isTrue(x.query.Get("pull"))); !v.Allowed() {
		return v, nil
	}
	root, err := x.rootSteps()
	if err != nil || !root.Allowed() {
		return root, err
	}
	tags, err := x.buildTags(exported)
	if err != nil || !tags.Allowed() {
		return tags, err
	}
	var v policy.Verdict
	if kit {
		v, err = buildKit(x)
	} else if v, err = x.classicBuild(); err == nil && v.Allowed() {
		v, err = x.with(x.opened(v, root))(x.sealed("a build"))
	}
	if err == nil && v.Allowed() && tags.Outcome == policy.FailOpen {
		v = x.opened(tags, v)
	}
	return v, err
}

// rootSteps decides about the steps of a build where the Engine maps no users.
func (x *exchange) rootSteps() (policy.Verdict, error) {
	if mapped, err := x.mapsUsers(); err != nil || mapped {
		return policy.Pass(), err
	}
	return policy.RootSteps(x.profile(), x.srv.Switches.ContainerRoot), nil
}

// exportedNames reads the names that BuildKit's exporters are told to write.
func (x *exchange) exportedNames() ([]string, error) {
	x.one("outputs")
	text := x.query.Get("outputs")
	if text == "" {
		return nil, nil
	}
	var outputs []struct {
		Type  string
		Attrs map[string]string
	}
	if err := json.Unmarshal([]byte(text), &outputs); err != nil {
		return nil, badRequest("the outputs parameter cannot be read: %v", err)
	}
	var names []string
	for _, out := range outputs {
		names = append(names, strings.Split(out.Attrs["name"], ",")...)
	}
	rebuilt, err := json.Marshal(outputs)
	if err != nil {
		return nil, badRequest("the outputs parameter cannot be rebuilt: %v", err)
	}
	x.setQuery("outputs", string(rebuilt))
	return names, nil
}

// classicBuild sets what a classic build must have.
func (x *exchange) classicBuild() (policy.Verdict, error) {
	verdict, err := x.buildNetwork()
	if err != nil || !verdict.Allowed() {
		return verdict, err
	}
	if v, err := x.buildUlimits(); err != nil || !v.Allowed() {
		return v, err
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
	gate, err := x.buildGate()
	if err != nil || !gate.Allowed() {
		return gate, err
	}
	verdict = x.opened(verdict, gate)
	x.setQuery("labels", string(text))
	x.setQuery("cgroupparent", units.CgroupParent(st.CgroupDriver, x.subject.Group, x.subject.Slice))
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

// buildUlimits checks the limits of a build's steps.
func (x *exchange) buildUlimits() (policy.Verdict, error) {
	text := x.query.Get("ulimits")
	if text == "" {
		x.query.Del("ulimits")
		return policy.Pass(), nil
	}
	var list []*container.Ulimit
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return policy.Verdict{}, badRequest("the ulimits parameter cannot be read: %v", err)
	}
	rebuilt, err := json.Marshal(list)
	if err != nil {
		return policy.Verdict{}, badRequest("the ulimits parameter cannot be rebuilt: %v", err)
	}
	x.setQuery("ulimits", string(rebuilt))
	return policy.BuildUlimits(x.profile(), list), nil
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
	if v, decided := policy.BuildNetwork(x.profile(), mode); decided {
		return v, nil
	}
	obj, v, err := x.network(mode, policy.Read)
	if err == nil && v.Allowed() {
		if v := policy.HostByID(x.profile(), obj); !v.Allowed() {
			return v, nil
		}
		x.setQuery("networkmode", obj.ID)
	}
	return v, err
}

// buildKit lets a build session through, or not: what happens inside it the proxy
// does not see.
func buildKit(x *exchange) (policy.Verdict, error) {
	root, err := x.rootSteps()
	if err != nil || !root.Allowed() {
		return root, err
	}
	kit := policy.BuildKit(x.switches().BuildKit)
	if !kit.Allowed() {
		return kit, nil
	}
	return x.with(x.opened(root, kit))(x.sealed("a build"))
}

// setQuery sets a parameter to one value.
func (x *exchange) setQuery(key, value string) {
	if x.query == nil {
		x.query = make(map[string][]string)
	}
	x.query[key] = []string{value}
}
