package proxy

import (
	"net/url"
	"strconv"

	"github.com/docker/docker/api/types/filters"

	"github.com/ds01/ds01-proxy/policy"
)

// filters reads the filters parameter: the first one, as the Engine does, in
// either of the two forms that it accepts.
func (x *exchange) filters() (filters.Args, error) {
	args, err := filters.FromJSON(x.query.Get("filters"))
	if err != nil {
		return filters.Args{}, badRequest("the filters parameter cannot be read: it must be a JSON object of lists, such as {\"label\":[\"a=b\"]}")
	}
	// A copy, since what came from null cannot be added to.
	own := filters.NewArgs()
	for _, key := range args.Keys() {
		for _, value := range args.Get(key) {
			own.Add(key, value)
		}
	}
	return own, nil
}

// setFilters writes exactly one filters parameter.
func (x *exchange) setFilters(args filters.Args) error {
	text, err := filters.ToJSON(args)
	if err != nil {
		return badRequest("the filters parameter cannot be rebuilt: %v", err)
	}
	if x.query == nil {
		x.query = make(url.Values, 1)
	}
	if text == "" {
		x.query.Del("filters")
		return nil
	}
	x.query["filters"] = []string{text}
	return nil
}

// filterOwn adds the owner's label to the client's own filters. The
// Engine wants all labels to match, so that what the client asks for can only
// narrow it.
func filterOwn(x *exchange) (policy.Verdict, error) {
	args, err := x.filters()
	if err != nil {
		return policy.Verdict{}, err
	}
	args.Add("label", policy.LabelUser+"="+x.subject.User)
	return policy.Verdict{Outcome: policy.Allow, Rule: "own-only"}, x.setFilters(args)
}

// listContainers filters a list by owner. The filters before and since name
// containers, whoever they belong to, and so do the parameters of that name in
// old versions of the API.
func listContainers(x *exchange) (policy.Verdict, error) {
	args, err := x.filters()
	if err != nil {
		return policy.Verdict{}, err
	}
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "own-only"}
	for _, key := range []string{"before", "since"} {
		for _, ref := range args.Get(key) {
			obj, v, err := x.container(ref, policy.Read)
			if err != nil || !v.Allowed() {
				return v, err
			}
			if v.Outcome == policy.FailOpen {
				verdict = v
			}
			args.Del(key, ref)
			args.Add(key, obj.ID)
		}
		x.query.Del(key)
	}
	if err := x.setFilters(args); err != nil {
		return policy.Verdict{}, err
	}
	if !x.srv.Index.Filters(x.subject.User) {
		// Labels do not tell, or either of two does, and the Engine's filters know no
		// "or": the answer is filtered instead, and counted after that.
		x.ownOnly = true
		x.limit, _ = strconv.Atoi(x.query.Get("limit"))
		if x.query.Del("limit"); x.limit > 0 {
			// A limit lists stopped containers too.
			x.setQuery("all", "1")
		}
		return verdict, nil
	}
	if v, err := filterOwn(x); err != nil || !v.Allowed() {
		return v, err
	}
	return verdict, nil
}
