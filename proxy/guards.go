package proxy

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/binds"
)

// A guard decides about one request and rewrites what it decided on. An error
// means that nothing could be decided; the request is then not forwarded.
type guard func(x *exchange) (policy.Verdict, error)

// open lets everybody through.
func open(*exchange) (policy.Verdict, error) { return policy.Pass(), nil }

// adminsOnly refuses whoever is not an admin; what is the thing as users know it.
func adminsOnly(what string) guard {
	return func(x *exchange) (policy.Verdict, error) { return policy.AdminsOnly(x.subject, what), nil }
}

// noPlugin answers that there is no such plugin: docker inspect looks there
// last for whatever it is asked for, and goes by the 404.
func noPlugin(x *exchange) (policy.Verdict, error) {
	return policy.Verdict{}, &statusError{http.StatusNotFound, fmt.Sprintf("plugin %q not found", x.vars["ref"])}
}

// noPlugins and noSwarm answer what an Engine without them answers: clients read
// both at every start, and the real answers are the admin's.
func noPlugins(x *exchange) (policy.Verdict, error) {
	x.local = []byte("[]\n")
	return policy.Pass(), nil
}

func noSwarm(*exchange) (policy.Verdict, error) {
	return policy.Verdict{}, &statusError{http.StatusServiceUnavailable,
		`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`}
}

// pruneBuildCache answers that nothing was pruned: the Engine prunes everybody's.
func pruneBuildCache(x *exchange) (policy.Verdict, error) {
	x.local = []byte(`{"CachesDeleted":[],"SpaceReclaimed":0}` + "\n")
	return policy.Pass(), nil
}

// unknownRoute decides about what no row matches.
func unknownRoute(x *exchange) (policy.Verdict, error) {
	return policy.UnknownRoute(x.subject, x.r.Method, x.path, x.switches().UnknownRoutes), nil
}

// container resolves ref, checks that the subject may use it, and returns it
// for the caller to write its ID in place of the reference.
func (x *exchange) container(ref string, use policy.Use) (policy.Object, policy.Verdict, error) {
	obj, err := x.srv.Owners.Container(x.r.Context(), x.subject.User, ref)
	if err != nil {
		return obj, policy.Verdict{}, err
	}
	x.touch(obj.ID)
	return obj, policy.AccessObject(x.subject, obj, use, x.switches().UnownedContainers), nil
}

// touch puts an object into the audit record, once.
func (x *exchange) touch(id string) {
	if !slices.Contains(x.rec.Objects, id) {
		x.rec.Objects = append(x.rec.Objects, id)
	}
}

// pathContainer checks the container in the path and writes its full ID there.
func (x *exchange) pathContainer(use policy.Use) (policy.Object, policy.Verdict, error) {
	obj, v, err := x.container(x.vars["ref"], use)
	if err == nil && v.Allowed() {
		x.path = replaceReference(x.path, "/containers/", x.vars["ref"], obj.ID)
	}
	return obj, v, err
}

// replaceReference puts id in the place of ref, which follows prefix.
func replaceReference(path, prefix, ref, id string) string {
	return prefix + id + path[len(prefix)+len(ref):]
}

func readContainer(x *exchange) (policy.Verdict, error) {
	_, v, err := x.pathContainer(policy.Read)
	return v, err
}

// topContainer lets ps be asked for what it says of processes, and not how to say it: the
// Engine picks the container's out of what ps prints.
func topContainer(x *exchange) (policy.Verdict, error) {
	x.one("ps_args")
	if v := policy.TopArguments(x.profile(), x.query.Get("ps_args")); !v.Allowed() {
		return v, nil
	}
	return readContainer(x)
}

func changeContainer(x *exchange) (policy.Verdict, error) {
	_, v, err := x.pathContainer(policy.Change)
	return v, err
}

// unknownBelowContainer decides about paths that the table does not know below
// a container that it does: the owner first, then the switch.
func unknownBelowContainer(x *exchange) (policy.Verdict, error) {
	_, v, err := x.pathContainer(policy.Change)
	if err != nil || !v.Allowed() {
		return v, err
	}
	return unknownRoute(x)
}

// startContainer also guards restart: neither takes a body, and a checkpoint is
// a path on the host.
func startContainer(x *exchange) (policy.Verdict, error) {
	for _, key := range []string{"checkpoint", "checkpoint-dir"} {
		if x.query.Get(key) != "" {
			return policy.AdminsOnly(x.subject, "docker start --"+key), nil
		}
		x.query.Del(key)
	}
	var body map[string]any
	if present, err := x.decode(&body); err != nil {
		return policy.Verdict{}, err
	} else if present && len(body) > 0 {
		return policy.Verdict{}, badRequest("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	x.body = nil
	obj, v, err := x.pathContainer(policy.Change)
	if err != nil || !v.Allowed() {
		return v, err
	}
	if ready := x.readyBinds(obj.ID); !ready.Allowed() {
		return ready, nil
	}
	gate, err := x.startGate(obj)
	if err != nil || !gate.Allowed() {
		return gate, err
	}
	x.holdStart(obj.Owner)
	return x.opened(v, gate), nil
}

func renameContainer(x *exchange) (policy.Verdict, error) {
	if v := policy.NewName(x.query.Get("name")); !v.Allowed() {
		return v, nil
	}
	x.one("name")
	return changeName(x, x.query.Get("name"))
}

func removeContainer(x *exchange) (policy.Verdict, error) {
	// A link's removal resolves the path as a link's alias and not as a container.
	if isTrue(x.query.Get("link")) {
		return policy.AdminsOnly(x.subject, "docker rm --link"), nil
	}
	x.query.Del("link")
	return changeName(x, "")
}

// changeName guards what makes a name free or another container's.
func changeName(x *exchange, name string) (policy.Verdict, error) {
	obj, v, err := x.pathContainer(policy.Change)
	if err == nil && v.Allowed() {
		x.finish = x.srv.Ledger.BeginChange(obj.ID, name)
		x.holdStart(obj.Owner)
	}
	return v, err
}

// isTrue reads a boolean parameter as the Engine does.
func isTrue(v string) bool {
	switch strings.ToLower(strings.TrimSpace(v)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// one keeps the first value of a parameter that was decided on.
func (x *exchange) one(key string) {
	if values := x.query[key]; len(values) > 1 {
		x.query[key] = values[:1]
	}
}

func updateContainer(x *exchange) (policy.Verdict, error) {
	req, _, err := rewrite[container.UpdateConfig](x)
	if err != nil {
		return policy.Verdict{}, err
	}
	obj, v, err := x.pathContainer(policy.Change)
	if err != nil || !v.Allowed() {
		return v, err
	}
	if host := policy.UpdateVerdict(x.profile(), &req); !host.Allowed() {
		return host, nil
	}
	gate, err := x.updateGate(obj, &req)
	if err != nil || !gate.Allowed() {
		return gate, err
	}
	v = x.opened(v, gate)
	return v, x.encode(&req)
}

func createExec(x *exchange) (policy.Verdict, error) {
	req, _, err := rewrite[container.ExecOptions](x)
	if err != nil {
		return policy.Verdict{}, err
	}
	v, err := changeContainer(x)
	if err != nil || !v.Allowed() {
		return v, err
	}
	if host := policy.ExecVerdict(x.profile(), &req); !host.Allowed() {
		return host, nil
	}
	if as, err := x.execAs(&req); err != nil || !as.Allowed() {
		return as, err
	}
	return v, nil
}

// execAs decides as whom a process may be started in the container in the path.
func (x *exchange) execAs(req *container.ExecOptions) (policy.Verdict, error) {
	if req.User == "" {
		return policy.Pass(), nil
	}
	list := x.srv.Staged.Of(x.rec.Objects[len(x.rec.Objects)-1])
	oneself := slices.ContainsFunc(list, unmapped)
	if x.srv.Switches.ContainerRoot == policy.SwitchDeny {
		mapped, err := x.mapsUsers()
		if err != nil {
			return policy.Verdict{}, err
		}
		oneself = oneself || !mapped
	}
	who, err := x.caller()
	if err != nil {
		return policy.Verdict{}, err
	}
	return policy.ExecAs(x.profile(), account(who), req, oneself, len(list) > 0), nil
}

func unmapped(b binds.Bind) bool { return b.Unmapped }

// readArchive lets files out of a container, unless the Engine, as root, would read
// what its user may not.
func readArchive(x *exchange) (policy.Verdict, error) {
	obj, v, err := x.pathContainer(policy.Read)
	if err != nil || !v.Allowed() {
		return v, err
	}
	if slices.ContainsFunc(x.srv.Staged.Of(obj.ID), unmapped) {
		return policy.CopyUnmapped(x.profile()), nil
	}
	return x.with(v)(x.heldArchive(obj.ID, obj.Owner))
}

// exec resolves the exec in the path to its container's owner. Exec IDs have no
// names and no prefixes, so the path stays as it is.
func (x *exchange) exec(use policy.Use) (policy.Verdict, error) {
	obj, err := x.srv.Owners.Exec(x.r.Context(), x.vars["id"])
	if err != nil {
		return policy.Verdict{}, err
	}
	x.touch(obj.ID)
	return policy.AccessObject(x.subject, obj, use, x.switches().UnownedContainers), nil
}

func readExec(x *exchange) (policy.Verdict, error)   { return x.exec(policy.Read) }
func changeExec(x *exchange) (policy.Verdict, error) { return x.exec(policy.Change) }

func startExec(x *exchange) (policy.Verdict, error) {
	if _, _, err := rewrite[container.ExecStartOptions](x); err != nil {
		return policy.Verdict{}, err
	}
	return changeExec(x)
}

func unknownBelowExec(x *exchange) (policy.Verdict, error) {
	v, err := x.exec(policy.Change)
	if err != nil || !v.Allowed() {
		return v, err
	}
	return unknownRoute(x)
}

// orEmpty is err, or says that a body is missing.
func orEmpty(err error) error {
	if err != nil {
		return err
	}
	return badRequest("the request needs a JSON body and has none")
}

// answerExecCreated remembers the exec before the client knows of it.
func answerExecCreated(x *exchange, _ *upstream, resp *http.Response) error {
	var created container.ExecCreateResponse
	return x.replayJSON(resp, &created, func() {
		x.srv.Ledger.AddExec(created.ID, x.rec.Objects[len(x.rec.Objects)-1])
	})
}

// switches are the daemon's, or all set to deny by the subject's profile.
func (x *exchange) switches() Switches {
	if x.profile().FailClosed {
		return Switches{}
	}
	return x.srv.Switches
}

// profile is the subject's, or one that allows nothing.
func (x *exchange) profile() *policy.Profile {
	if x.subject.Profile == nil {
		return &policy.Profile{Name: "none"}
	}
	return x.subject.Profile
}
