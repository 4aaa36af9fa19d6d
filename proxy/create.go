package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"github.com/ds01/ds01-proxy/units"
)

// maxReferences is how many containers, and how many volumes, one create request
// may name.
const maxReferences = 256

// createContainer checks the name and every container that the request refers
// to, and puts the owner's marks on it.
func createContainer(x *exchange) (policy.Verdict, error) {
	name := x.query.Get("name")
	if v := policy.NewName(name); !v.Allowed() {
		return v, nil
	}
	x.one("name")
	var req container.CreateRequest
	if present, err := x.decode(&req); err != nil || !present || req.Config == nil {
		return policy.Verdict{}, orEmpty(err)
	}
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "create-container"}
	refs := policy.ContainerReferences(&req)
	if len(refs) > maxReferences {
		return policy.Verdict{}, badRequest("the request refers to %d containers; %d is the most", len(refs), maxReferences)
	}
	known := make(map[string]string)
	for _, ref := range refs {
		if id, ok := known[ref.Ref]; ok {
			ref.Set(id)
			continue
		}
		obj, v, err := x.container(ref.Ref, policy.Change)
		if errors.Is(err, engine.ErrNotFound) {
			// A 404 would make docker run pull the image.
			return v, badRequest("No such container: %s (%s)", ref.Ref, ref.Field)
		}
		if err != nil {
			return v, fmt.Errorf("%s %s: %w", ref.Field, ref.Ref, err)
		}
		if !v.Allowed() {
			v.Reason += " (" + ref.Field + " " + ref.Ref + ")"
			return v, nil
		}
		verdict = x.opened(verdict, v)
		known[ref.Ref] = obj.ID
		ref.Set(obj.ID)
	}
	if v := policy.LabelSize(req.Labels); !v.Allowed() {
		return v, nil
	}
	if v := policy.HostVerdict(x.profile(), &req); !v.Allowed() {
		return v, nil
	}
	if v := policy.PlainUser(x.profile(), req.User); !v.Allowed() {
		return v, nil
	}
	for _, step := range []func(*container.CreateRequest) (policy.Verdict, error){x.containerRoot, x.createImages, x.createGate, x.createNetworks, x.createVolumes, x.createBinds} {
		v, err := step(&req)
		if err != nil || !v.Allowed() {
			return v, err
		}
		verdict = x.opened(verdict, v)
	}
	policy.Harden(x.profile(), &req)
	if x.oneself {
		policy.HardenOneself(&req)
	}
	if err := x.fillVolumes(&req); err != nil {
		return policy.Verdict{}, err
	}
	if err := x.stampRequest(&req); err != nil {
		return policy.Verdict{}, err
	}
	policy.LabelGPUs(&req, x.granted)
	if tokens := x.tokens(); len(tokens) > 0 {
		// Whatever becomes of this request, the container tells what it uses.
		req.Labels[policy.LabelBinds] = strings.Join(tokens, ",")
	}
	return verdict, x.encode(&req)
}

// containerRoot decides about whom a container may run as where the Engine maps no
// users.
func (x *exchange) containerRoot(req *container.CreateRequest) (policy.Verdict, error) {
	if mapped, err := x.mapsUsers(); err != nil || mapped {
		return policy.Pass(), err
	}
	who, err := x.caller()
	if err != nil {
		return policy.Verdict{}, err
	}
	v, harden := policy.ContainerRoot(x.profile(), account(who), req, x.srv.Switches.ContainerRoot)
	x.oneself = x.oneself || harden
	return v, nil
}

// mapsUsers reports whether a container's users are nobody on the host.
func (x *exchange) mapsUsers() (bool, error) {
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil {
		return false, err
	}
	root, _, err := st.Remap()
	return root != 0, err
}

// stampRequest sets owner labels and cgroup parent; nothing touches the request
// after it.
func (x *exchange) stampRequest(req *container.CreateRequest) error {
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil {
		return err
	}
	parent := units.CgroupParent(st.CgroupDriver, x.subject.Group, x.subject.Slice)
	policy.StampContainer(req, x.subject, parent, x.srv.Now(), x.runs.Labels)
	return nil
}

// stampContainer rebuilds the client's own request with nothing but the marks
// added; it reports false where the request cannot be read.
func stampContainer(x *exchange) ([]byte, bool) {
	var req container.CreateRequest
	if err := json.NewDecoder(bytes.NewReader(x.read)).Decode(&req); err != nil || x.stampRequest(&req) != nil {
		return nil, false
	}
	body, err := json.Marshal(&req)
	return body, err == nil
}

// answerCreated remembers the container before the client knows of it.
func answerCreated(x *exchange, _ *upstream, resp *http.Response) error {
	var created container.CreateResponse
	text, err := x.readAnswer(resp, &created)
	if err != nil {
		return err
	}
	x.rec.Objects = append(x.rec.Objects, created.ID)
	x.giveBinds(created.ID)
	x.holding.ID = created.ID
	x.hold.Made(x.holding)
	x.srv.Ledger.AddContainer(engine.Container{
		ID:     created.ID,
		Names:  []string{x.query.Get("name")},
		Labels: map[string]string{policy.LabelUser: x.subject.User},
	})
	if len(x.warnings) == 0 {
		return x.reply(resp, text)
	}
	created.Warnings = append(created.Warnings, x.warnings...)
	return x.replyJSON(resp, &created)
}

// conflictOfNames answers for a name that another user's container has: whose it is
// is nobody's business, that it is not the caller's is theirs.
func conflictOfNames(x *exchange, _ *upstream, resp *http.Response) error {
	var e struct{ Message string }
	text, err := x.readAnswer(resp, &e)
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(e.Message) {
		id := strings.Trim(word, `".,`)
		if owner, known := x.srv.Index.OwnerOf(id); known && owner != x.subject.User {
			text = errorBody(policy.NameTaken(x.query.Get("name")))
		}
	}
	return x.reply(resp, text)
}
