"""BIDS-Prov: what was used and made is named once, by terms of its context, without times and paths."""

import json

from cmb_jax.io.provenance import provenance_jsonld


def test_records_refer_to_each_other():
    text = provenance_jsonld(
        program_version="9.9",
        command="cmb-jax predict",
        parameters={"Threshold": 0.6},
        inputs=(("bids:raw:sub-01/anat/sub-01_swi.nii.gz", "sub-01_swi.nii.gz", "ab" * 32),),
        weights=("small.safetensors", "cd" * 32),
        outputs=("sub-01_desc-cmb_detections.tsv", "sub-01_desc-cmb_dseg.nii.gz"),
    )
    content = json.loads(text)
    assert content.keys() == {"@context", "BIDSProvVersion", "Records"}
    records = content["Records"]
    (activity,) = records["Activities"]
    entities = {each["Id"]: each for each in records["Entities"]}
    software = {each["Id"]: each for each in records["Software"]}
    assert len(entities) == len(records["Entities"]) == 4
    assert set(activity["AssociatedWith"]) == software.keys()
    assert software["#cmb-jax"]["Version"] == "9.9"
    made = {name for name, each in entities.items() if each.get("GeneratedBy") == activity["Id"]}
    assert made == {"sub-01_desc-cmb_detections.tsv", "sub-01_desc-cmb_dseg.nii.gz"}
    assert set(activity["Used"]) == entities.keys() - made
    assert entities["bids:raw:sub-01/anat/sub-01_swi.nii.gz"]["Digest"] == {"SHA256": "ab" * 32}
    assert "Time" not in text
