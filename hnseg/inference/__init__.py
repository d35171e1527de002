"""From raw PET/CT to masks on the CT's grid."""
