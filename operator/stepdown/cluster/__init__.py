"""The only door to the API server: plain dicts in and out, errors of our own. `watch` and `sync` call it.

client      the verbs; READ IT FIRST. Below it: config (who we are), wire (one request), watching (one stream), errors, kinds
children    a fleet's objects kept as desired. Below it: following (LIST and WATCH for ever), mirror (what is there),
            managed (what of it is ours), takeover (whose a name is), patience (when again)
statuses    status documents        events      Events, by the rules of correlate
leader      the Lease               witness     marks outside the ledger, under the names of marknames
"""
