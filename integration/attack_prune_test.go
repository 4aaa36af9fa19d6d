package integration

// pruneAttacks remove what is bob's and idle, by every form of a filter.
func pruneAttacks() []attack {
	const form = "form bodies are not part of the Docker API"
	kinds := []struct{ path, key string }{{"/containers/prune", "off"}, {"/networks/prune", "idle net"}, {"/volumes/prune", "idle vol"}, {"/images/prune", "image"}}
	var all []attack
	for _, kind := range kinds {
		add := func(name, target, body string, with func(a *attack)) {
			a := attack{row: "POST " + kind.path, name: name, target: target, body: body, status: 200, alters: true, worked: gone(kind.key)}
			if with != nil {
				with(&a)
			}
			all = append(all, a)
		}
		filtered := func(name string, filters ...string) {
			var pairs []string
			for _, text := range filters {
				pairs = append(pairs, "filters", text)
			}
			add(name, query(kind.path, pairs...), "", nil)
		}
		typed := func(kind string) func(a *attack) {
			return func(a *attack) { a.status, a.says, a.header = 415, form, []string{"Content-Type", kind} }
		}
		add("without filters", kind.path, "", nil)
		filtered("bob's label", `{"label":["ds01.user=bob"]}`)
		filtered("bob's label as a map", `{"label":{"ds01.user=bob":true}}`)
		filtered("not alice's label", `{"label!":["ds01.user=alice"]}`)
		filtered("null", `null`)
		filtered("an empty list", `{"label":[]}`)
		filtered("two of them", `{}`, `{"label":["ds01.user=alice"]}`)
		add("an empty one before another", kind.path+"?filters=&"+query("", "filters", `{"label":["ds01.user=alice"]}`)[1:], "", nil)
		add("a JSON body", kind.path, `{"filters":{}}`, nil)
		own := query(kind.path, "filters", `{"label":["ds01.user=alice"]}`)
		add("a form over the query", own, "filters=%7B%7D", typed("application/x-www-form-urlencoded"))
		add("a form with a charset over the query", own, "filters=%7B%7D", typed("Application/X-WWW-Form-Urlencoded; charset=utf-8"))
		add("a multipart form", kind.path, "--b\r\nContent-Disposition: form-data; name=\"filters\"\r\n\r\n{}\r\n--b--\r\n", typed("multipart/form-data; boundary=b"))
		add("by an old version", "/v1.25"+kind.path, "", nil)
		add("percent-encoded", kind.path[:len(kind.path)-1]+"%65", "", nil)
	}
	return all
}
